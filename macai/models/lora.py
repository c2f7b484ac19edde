"""Low-rank adapters (Hu et al., arXiv:2106.09685) put into and taken out of any mlx-lm model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.errors import UsageError
from macai.models.load import dense_weight
from macai.models.peft_config import PeftConfig, names
from macai.models.start import STARTS, Factors
from macai.models.whole import train_whole

ALL_LINEAR = "all-linear"
HEAD = "lm_head"  # PEFT's all-linear leaves the output head alone, and so does ours


class LoRALinear(nn.Module):
    """A frozen linear layer plus scale * B A: y = W x + scale * B A x.

    Attributes:
        scale: alpha / rank, or alpha / sqrt(rank): see `macai.models.peft_config.PeftConfig`.
        lora_A: float32 [rank, in], drawn uniformly as PEFT does (kaiming, a = sqrt 5).
        lora_B: float32 [out, rank], zero at first, so that a new adapter changes nothing.
    """

    def __init__(
        self, linear: nn.Module, *, rank: int, scale: float, dropout: float, key: mx.array
    ) -> None:
        super().__init__()
        out_features, in_features = linear_shape(linear)
        bound = 1 / math.sqrt(in_features)
        self.linear = linear
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self.active = True
        self._subtracted: tuple[mx.array, mx.array] | None = None
        self.lora_A = mx.random.uniform(-bound, bound, (rank, in_features), key=key)
        self.lora_B = mx.zeros((out_features, rank))

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out], in the type of `x`: a float32 product would promote the rest."""
        if not self.active:
            return self.linear(x)
        a, b = self.factors()
        low = self.dropout(x) @ a.T.astype(x.dtype)
        return mx.addmm(self.linear(x), low, b.T.astype(x.dtype), alpha=self.scale)

    def start_from(self, start: Factors) -> None:
        """Take A and B from a start; what is subtracted stays what it is then."""
        self.lora_A, self.lora_B = start.A, start.B
        self._subtracted = (start.A, start.B) if start.subtract else None

    def factors(self) -> tuple[mx.array, mx.array]:
        """Return A [R, in] and B [out, R] of all that is added; R is twice the rank with PiSSA."""
        if self._subtracted is None:
            return self.lora_A, self.lora_B
        a, b = self._subtracted
        return mx.concatenate([self.lora_A, a]), mx.concatenate([self.lora_B, -b], axis=1)

    def delta(self) -> mx.array:
        """Return what the adapter adds to the weight, float32 [out, in]."""
        a, b = self.factors()
        return self.scale * (b @ a)

    def merged_weight(self) -> mx.array:
        """Return the weight that does what this layer does without dropout, float32 [out, in]."""
        return dense_weight(self.linear) + self.delta()


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a plain or quantised linear layer; (rows, width) of an embedding."""
    out_features, columns = linear.weight.shape
    if isinstance(linear, nn.QuantizedLinear | nn.QuantizedEmbedding):
        columns = columns * 32 // linear.bits
    return out_features, columns


def linear_paths(model: nn.Module) -> list[str]:
    """Return the paths of all linear layers, adapted ones included, in the model's order."""
    modules = dict(model.named_modules())
    linear = (nn.Linear, nn.QuantizedLinear, LoRALinear)
    return sorted(
        (
            path
            for path, module in modules.items()
            if isinstance(module, linear)
            and not isinstance(modules.get(path.rpartition(".")[0]), LoRALinear)
        ),
        key=_natural,
    )


def target_paths(model: nn.Module, targets: Sequence[str], *, last_blocks: int = 0) -> list[str]:
    """Return the paths of the linear layers that `targets` name, in the model's order.

    Args:
        model: An mlx-lm model.
        targets: Each the last part of a path ("q_proj"), a longer tail ("self_attn.q_proj"), or
            "all-linear" for every linear layer but the head.
        last_blocks: Only those of so many blocks, counted from the last; 0 for all. What belongs to
            no block is not left out.

    Raises:
        UsageError: a target that matches nothing (all such are named), or too many blocks.
    """
    linears = linear_paths(model)
    if last_blocks:
        linears = _of_last_blocks(model, linears, last_blocks)
    unmatched = [t for t in targets if not any(matches(p, t) for p in linears)]
    if unmatched:
        known = sorted({p.rpartition(".")[2] for p in linears})
        raise UsageError(
            f"no linear layer is called {', '.join(map(repr, unmatched))}",
            hint=f"this model has {', '.join(known)}; or use '{ALL_LINEAR}'",
        )
    return [p for p in linears if any(matches(p, t) for t in targets)]


def _of_last_blocks(model: nn.Module, paths: list[str], last_blocks: int) -> list[str]:
    blocks = len(model.layers)
    if last_blocks > blocks:
        raise UsageError(
            f"{last_blocks} layers with an adapter, and the model has {blocks}",
            hint="0 gives all of them one",
        )
    numbers = {p: next((int(n) for n in p.split(".") if n.isdigit()), blocks) for p in paths}
    return [p for p in paths if numbers[p] >= blocks - last_blocks]


def add_lora(
    model: nn.Module,
    paths: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
    use_rslora: bool = False,
    use_dora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    modules_to_save: Sequence[str] = (),
    init: str = "default",
    original: nn.Module | None = None,
) -> None:
    """Freeze `model` and put a LoRALinear in place of each layer in `paths`.

    Args:
        model: Changed in place.
        paths: Of linear layers.
        rank: Columns of the factors.
        alpha: See `macai.models.peft_config.PeftConfig`.
        dropout: Of the inputs of the adapter.
        seed: Decides what A is.
        use_rslora: Divide alpha by the root of the rank.
        use_dora: Put a DoRALinear there instead.
        rank_pattern: Ranks of layers whose paths end in a key.
        alpha_pattern: Likewise.
        init: "default", or a key of `macai.models.start.STARTS`.
        original: The model that `model` was quantised from, for "loftq".
        modules_to_save: Names of modules to train whole: see `macai.models.whole`.

    Raises:
        UsageError: a name in `modules_to_save` that means no module.
    """
    from macai.models.dora import DoRALinear

    ranks, alphas = dict(rank_pattern or {}), dict(alpha_pattern or {})
    patterns = PeftConfig(rank, alpha, ranks, alphas, use_rslora)
    model.freeze()
    modules: dict[str, Any] = dict(model.named_modules())
    keys = mx.random.split(mx.random.key(seed), len(paths))
    kind = DoRALinear if use_dora else LoRALinear
    unquantised: dict[str, Any] = dict(original.named_modules()) if original else {}
    wrapped = []
    for path, key in zip(paths, keys, strict=True):
        own = patterns.rank_of([path])
        scale = patterns.scale([path], own)
        modules[path].freeze()
        layer = kind(modules[path], rank=own, scale=scale, dropout=dropout, key=key)
        if init != "default":
            before = dense_weight(unquantised[path]) if original else None
            layer.start_from(STARTS[init](dense_weight(modules[path]), before, own, scale, key))
        wrapped.append((path, layer))
    model.update_modules(tree_unflatten(wrapped))
    train_whole(model, modules_to_save)
    mx.eval(model.parameters())


def require_used(patterns: PeftConfig, paths: Sequence[str]) -> None:
    """Raise UsageError for the keys of patterns that name none of the adapted layers."""
    keys = dict.fromkeys([*patterns.ranks, *patterns.alphas])
    if unused := [k for k in keys if not any(names(k, [p]) for p in paths)]:
        raise UsageError(
            f"no adapted layer is called {', '.join(map(repr, unused))}",
            hint="a key of rank_pattern and alpha_pattern is the end of a path, such as 'q_proj'",
        )


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Meanwhile, have `model` compute what its base does; what is trained whole stays as it is."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.active = False
    try:
        yield
    finally:
        for layer in layers:
            layer.active = True


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the adapted layers by path."""
    return {p: m for p, m in model.named_modules() if isinstance(m, LoRALinear)}


def matches(path: str, target: str) -> bool:
    """Return whether `target` names the linear layer at `path`: see `target_paths`."""
    if target == ALL_LINEAR:
        return path.rpartition(".")[2] != HEAD
    return path == target or path.endswith("." + target)


def _natural(path: str) -> list[tuple[bool, int, str]]:
    """Sort key under which layers.2 comes before layers.10."""
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in path.split(".")]
