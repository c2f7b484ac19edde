"""A fused model quantised again, with as many bits as its own answers need.

Quantising again rounds: what an adapter adds is often less than half a step of 4 bits (in
mlx-lm 0.32.2, 12 to 16 % of it was left). So what is left is measured, on rows, and the layers that
lose most get more bits until the model answers as before, or until none are left to give.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.errors import AdapterError
from macai.models.load import dense_weight

BITS = (2, 3, 4, 5, 6, 8)
AGREEMENT = 0.99
WHOLE = 16
"""Stands for a layer that is not quantised."""
GROUP = 32
_PART = 4  # of the layers below the highest bits, one in so many gets more at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantised:
    """What was decided.

    Attributes:
        bits: Of each layer by its path; WHOLE for one that is not quantised.
        agreement: The share of tokens that the model finds the likeliest as before, 0 to 1.
        plain_agreement: The same with all layers in the bits that were asked for.
    """

    bits: dict[str, int]
    agreement: float
    plain_agreement: float

    def config(self, bits: int) -> dict[str, Any]:
        """Return mlx-lm's `quantization` for config.json; `bits` are the rule."""
        rule = {"group_size": GROUP, "bits": bits, "mode": "affine"}
        own = {p: rule | {"bits": n} for p, n in self.bits.items() if n not in (bits, WHOLE)}
        return rule | own


def requantise(
    model: nn.Module,
    answers: Callable[[nn.Module], mx.array],
    expected: mx.array,
    *,
    bits: int,
    raise_bits: bool,
    progress: Callable[[float], None] = lambda agreement: None,
) -> Requantised:
    """Quantise the linear layers and embeddings of a float model, in place.

    Args:
        model: Fused.
        answers: The ids that a model finds the likeliest, int32 [N].
        expected: Those of the model before.
        bits: A layer's bits, of BITS.
        raise_bits: Give layers more that need them.
        progress: Called with each measured agreement.

    Raises:
        AdapterError: fewer than AGREEMENT answers stay, and `raise_bits` is false; it says which
            layers need more bits.
    """
    weights = {path: dense_weight(module) for path, module in _layers(model)}
    error = cache(lambda path, number: _error(weights[path], number))
    chosen = dict.fromkeys(weights, bits)
    agreements: list[float] = []
    for changed in _rounds(chosen, error):
        chosen |= changed
        for path, number in changed.items():
            _layer(model, path).weight = _rounded(weights[path], number)
        same = (answers(model) == expected).mean().item()
        agreements.append(float(same))  # type: ignore[arg-type]
        progress(agreements[-1])
        if agreements[-1] >= AGREEMENT:
            break
    needing = {path: n for path, n in chosen.items() if n > bits}
    if needing and not raise_bits:
        shown = [f"{path} ({n} bits)" for path, n in sorted(needing.items())]
        more = f", and {len(shown) - 12} more" if len(shown) > 12 else ""
        raise AdapterError(
            f"in {bits} bits {agreements[0]:.1%} of the answers stay, and {AGREEMENT:.0%} must; "
            f"more bits are needed by {', '.join(shown[:12])}{more}",
            hint="--raise-bits gives each what it needs; without --bits the model stays exact",
        )
    for path, number in chosen.items():
        if number != WHOLE:
            _put_quantised(model, path, weights.pop(path), number)
    return Requantised(bits=chosen, agreement=agreements[-1], plain_agreement=agreements[0])


def _rounds(chosen: dict[str, int], error: Callable[[str, int], float]) -> Iterator[dict[str, int]]:
    """Yield the bits of layers to change: of all, then of those that lose most.

    Before the next item `chosen` is what it has become.
    """
    yield dict(chosen)
    while low := [path for path, n in chosen.items() if n != WHOLE]:
        worst = sorted(low, key=lambda path: -error(path, chosen[path]))
        part = worst[: -(-len(chosen) // _PART)]
        order = (*BITS, WHOLE)
        yield {path: order[order.index(chosen[path]) + 1] for path in part}


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Linear, nn.Embedding)
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, kinds) and module.weight.shape[-1] % GROUP == 0
    ]


def _layer(model: nn.Module, path: str) -> Any:
    return dict(model.named_modules())[path]


def _rounded(weight: mx.array, bits: int) -> mx.array:
    """Return what is left of a weight in so many bits, float32, as it will be loaded again."""
    if bits == WHOLE:
        return weight
    packed, scales, biases = mx.quantize(weight.astype(mx.float16), GROUP, bits)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    rounded = mx.dequantize(packed, scales, biases, GROUP, bits)
    mx.eval(rounded)
    return rounded


def _error(weight: mx.array, bits: int) -> float:
    """Return the share of a weight that rounding takes away."""
    lost = mx.linalg.norm(_rounded(weight, bits) - weight) / mx.linalg.norm(weight)
    return float(lost.item())  # type: ignore[arg-type]


def _put_quantised(model: nn.Module, path: str, weight: mx.array, bits: int) -> None:
    module = _layer(model, path)
    module.weight = weight.astype(mx.float16)
    quantised = module.to_quantized(GROUP, bits)
    mx.eval(quantised.parameters())
    model.update_modules(tree_unflatten([(path, quantised)]))
