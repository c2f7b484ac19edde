"""How large a model and what its training keeps are, from shapes alone: no weight is read.

What a block keeps for its backward pass follows from its linear layers, in any of mlx-lm's models:

- the output of each: the next operation's gradient needs it (queries and keys by each other, gate
  and up by each other, a residual by the norm that reads it);
- the input of each that is trained, once where several read the same: the gradient of a weight is
  its output's times its input. A frozen one needs none;
- of attention, the weights of each head, where no fused kernel computes them again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_map_with_path

from macai.models.arrays import named_arrays
from macai.models.dora import DoRALinear
from macai.models.load import dequantise, load_network
from macai.models.lora import LoRALinear, linear_shape

# The layers that read what a norm gives, all the same, by the names of mlx-lm's models. Any other
# is taken to have an input of its own, which is the more careful guess.
_FIRST = frozenset(
    "q_proj k_proj v_proj qkv_proj query_key_value gate_proj up_proj gate_up_proj w1 w3 fc1".split()  # noqa: SIM905
)
_GATES = frozenset(("gate_proj", "gate_up_proj", "w1"))
_FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSizes:
    """What one token costs in one block, in numbers of the activations' type.

    Attributes:
        width: Of what goes from block to block.
        widest: The width of the layers in its middle, those of the MLP.
        kept: What stays for the backward pass, attention's weights aside; 0 where no gradient goes.
        queries: Width of all heads together.
        keys: Width of keys and values together.
        heads: Of attention; each has a weight for each token attended to.
        trained: Numbers that are trained in it.
    """

    width: int
    widest: int
    kept: int
    queries: int
    keys: int
    heads: int
    trained: int

    @property
    def reached(self) -> bool:
        """Whether a gradient goes through it."""
        return self.kept > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Of a model that is ready to be trained.

    Attributes:
        weight_bytes: Of all its arrays, those trained included.
        trained: How many numbers are trained.
        trained_bytes: What they take.
        activation_bytes: Of one number that a layer gives.
        vocabulary: How many logits a token has.
        head_trained: Trained numbers of embeddings and head.
        blocks: From the first to the last.
    """

    weight_bytes: int
    trained: int
    trained_bytes: int
    activation_bytes: int
    vocabulary: int
    head_trained: int
    blocks: tuple[BlockSizes, ...]


def open_hollow(path: Any) -> nn.Module:
    """Return the model of a folder with its shapes and types, and without its weights.

    Each array is a zero that is there once, whatever its shape, so any model fits in memory.
    Quantised layers are what `macai.models.load.load_network` makes of them on this backend.
    """
    model = load_network(path, as_stored=True)
    if mx.default_device() == mx.cpu:
        dequantise(model)
        model.update(tree_map_with_path(_float32, model.parameters()))
    model.update(tree_map(_hollow, model.parameters()))
    return model


def model_sizes(model: nn.Module, config: dict[str, Any]) -> ModelSizes:
    """Measure a model, with its adapter or unfrozen, hollow or not.

    Args:
        model: Its `layers` are its blocks.
        config: Its parsed config.json.
    """
    arrays = named_arrays(model.parameters())
    trained = named_arrays(model.trainable_parameters())
    blocks: Sequence[nn.Module] = model.layers
    counts = [sum(a.size for a in named_arrays(b.trainable_parameters()).values()) for b in blocks]
    outside = sum(a.size for a in trained.values()) - sum(counts)
    # What is trained outside of the blocks may be the embeddings, which come before all of them.
    embedded = any("embed" in name or "wte" in name for name in trained)
    first = 0 if embedded else next((i for i, count in enumerate(counts) if count), len(blocks))
    config = config.get("text_config", config)
    floats = {a.dtype for a in arrays.values() if mx.issubdtype(a.dtype, mx.floating)}
    frozen = {a.dtype for n, a in arrays.items() if n not in trained} & floats
    return ModelSizes(
        weight_bytes=sum(a.nbytes for a in arrays.values()),
        trained=sum(a.size for a in trained.values()),
        trained_bytes=sum(a.nbytes for a in trained.values()),
        activation_bytes=max((t.size for t in frozen), default=_FLOAT32),
        vocabulary=int(config["vocab_size"]),
        head_trained=outside,
        blocks=tuple(
            _block(block, config, counts[i], reached=i >= first) for i, block in enumerate(blocks)
        ),
    )


def _block(block: nn.Module, config: dict[str, Any], trained: int, *, reached: bool) -> BlockSizes:
    width = int(config["hidden_size"])
    experts = int(config.get("num_experts_per_tok") or 1)
    shapes: dict[str, tuple[int, int]] = {}
    inputs: dict[tuple[str, str], int] = {}
    kept, widest = 0, width
    for path, layer in _linears(block).items():
        parent, _, name = path.rpartition(".")
        base = layer.linear if isinstance(layer, LoRALinear) else layer
        rows, columns = _shape(base)
        times = experts if base.weight.ndim == 3 else 1  # a token goes through so many of them
        shapes[name] = times * rows, times * columns
        widest = max(widest, *shapes[name])
        gate = times * rows if name in _GATES else 0  # the share that it lets through
        kept += times * rows + gate + _of_adapter(layer, rows, columns)
        if named_arrays(layer.trainable_parameters()) and not _drops(layer):
            inputs[parent, "" if name in _FIRST else name] = times * columns
    names = {path.rpartition(".")[2] for path, _ in block.named_modules()}
    queries, keys = shapes.get("q_proj", (width, 0))[0], shapes.get("k_proj", (width, 0))[0]
    kept += queries * ("q_norm" in names) + keys * ("k_norm" in names)
    return BlockSizes(
        width=width,
        widest=widest,
        kept=kept + sum(inputs.values()) if reached else 0,
        queries=queries,
        keys=2 * keys,
        heads=int(config.get("num_attention_heads") or 1),
        trained=trained,
    )


def _linears(block: nn.Module) -> dict[str, Any]:
    """Return the linear layers by path, those of experts included, an adapted one as a whole."""
    modules: dict[str, Any] = dict(block.named_modules())
    return {
        path: module
        for path, module in modules.items()
        if not isinstance(modules.get(path.rpartition(".")[0]), LoRALinear)
        and (
            isinstance(module, LoRALinear | nn.Linear | nn.QuantizedLinear)
            or ("weight" in module and module.weight.ndim == 3 and "proj" in path)
        )
    }


def _shape(linear: Any) -> tuple[int, int]:
    """Return (out, in) of a linear layer, or of each expert of several."""
    if linear.weight.ndim == 2:
        return linear_shape(linear)
    rows, columns = linear.weight.shape[1:]
    return rows, columns * 32 // linear.bits if "scales" in linear else columns


def _of_adapter(layer: Any, rows: int, columns: int) -> int:
    """Return what a token leaves in an adapter itself, in numbers."""
    if not isinstance(layer, LoRALinear):
        return 0
    low = layer.factors()[0].shape[0]
    whole = rows if isinstance(layer, DoRALinear) else 0  # what its magnitude is the factor of
    dropped = 2 * columns if _drops(layer) else 0  # the mask, and what it leaves of the input
    return low + whole + dropped


def _drops(layer: Any) -> bool:
    return isinstance(layer, LoRALinear) and bool(layer.dropout._p_1 < 1)


def _float32(_: str, value: mx.array) -> mx.array:
    return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value


def _hollow(value: mx.array) -> mx.array:
    return mx.broadcast_to(mx.array(0).astype(value.dtype), value.shape)
