"""Build a component of MLX from its config and fill it from its file, a little at a time.

Memory is that of the finished component, plus BATCH_BYTES or its largest tensor.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from macai.diffusion.loading.contents import Part
from macai.diffusion.loading.coverage import match, named, torch_shapes
from macai.diffusion.models import from_config
from macai.diffusion.models.layout import to_mlx
from macai.diffusion.models.quantised import QuantizedLinear
from macai.errors import ModelError
from macai.models.arrays import named_arrays
from macai.models.shown import shown
from macai.models.stored import FLOATS, StoredTensor

BATCH_BYTES = 64 << 20
DTYPES: Mapping[str, mx.Dtype] = {
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
}
BITS = (4, 8)
GROUP_SIZES = (64, 32)  # of inputs that share a scale, the first that divides their number
_LARGEST = 1 << 20
# Of layers: each has tensors of its own, and a model is built before its weights are looked for.
_COUNTS = (
    "num_hidden_layers",
    "layers_per_block",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "num_encoder_blocks",
    "num_decoder_blocks",
)
# Whose rounding every step of a trajectory or every token would carry on; they are small besides.
_NOT_QUANTISED = ("time_embedding", "add_embedding", "class_embedding", "text_projection")


@dataclass(frozen=True, slots=True)
class Precision:
    """How the weights are kept: a key of DTYPES, and the bits of quantised linear layers."""

    dtype: str = "float32"
    bits: int | None = None


def skeleton(part: Part, path: Path) -> nn.Module:
    """Return the model of a config, with weights that nobody has computed yet.

    Raises:
        ModelError: the config is not of a model that is known.
    """
    _check_sizes(part, path)
    try:
        return from_config(part.config)
    except ModelError as e:
        raise type(e)(f"{path}: {e.message}", hint=e.hint) from e
    except (ValueError, ZeroDivisionError) as e:  # of MLX's layers, for a size below 1
        raise ModelError(
            f"{path}: no model can be built of its config: {shown(e)}",
            hint="is it the config.json of this model?",
        ) from e


def _check_sizes(part: Part, path: Path) -> None:
    have = len(part.tensors)
    for key, value in part.config.items():
        most = have if key in _COUNTS else _LARGEST
        if any(number > most for number in _numbers(value)):
            raise ModelError(
                f"{path}: {have} tensors, and a config with {shown(key)} = {shown(value)}",
                hint="is it the config.json of this model?",
            )


def _numbers(value: object) -> Iterator[float]:
    """Yield the numbers in a value of a config, and how long its lists are."""
    if isinstance(value, list | tuple):
        yield len(value)
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def build(component: str, part: Part, precision: Precision) -> nn.Module:
    """Return a component with its weights, ready to run.

    Raises:
        ModelError: weights are missing, unexpected, of another shape, NaN or infinite, or too
            large for the type; all such are counted, the first named.
        FormatError: the file cannot be read to its end.
    """
    model = skeleton(part, part.file)
    shapes = torch_shapes(model)
    coverage = match(shapes, part.table(shapes), part.tensors, part.may_be_left)
    found = coverage.check(part.file, component)
    groups = group_sizes(model, precision)
    values = dict(_values(model, found, groups, precision, part.file, component))
    if groups:
        quantise(model, groups, precision)
    model.load_weights(list(values.items()))
    model.eval()
    mx.clear_cache()
    return model


def memory_bytes(component: str, part: Part, precision: Precision) -> int:
    """Return how many bytes the weights of a component take once built; reads none of them."""
    model = skeleton(part, part.file)
    groups = group_sizes(model, precision)
    if groups:
        quantise(model, groups, precision)
    item = DTYPES[precision.dtype].size
    values = named_arrays(model.parameters()).values()
    return sum(v.nbytes if v.dtype == mx.uint32 else v.size * item for v in values)


def group_sizes(model: nn.Module, precision: Precision) -> dict[str, int]:
    """Return the linear layers to quantise, by path, and how many inputs share a scale there.

    Embeddings, convolutions, norms, the time's and sizes' embedding and the text's projection stay
    as they are, and so does a layer whose inputs no group size divides.
    """
    if precision.bits is None:
        return {}
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and not path.startswith(_NOT_QUANTISED):
            inputs = module.weight.shape[1]
            if size := next((g for g in GROUP_SIZES if inputs % g == 0), None):
                found[path] = size
    return found


def quantise(model: nn.Module, groups: Mapping[str, int], precision: Precision) -> None:
    """Put quantised layers in the places that `groups` names."""
    assert precision.bits is not None
    layers = dict(model.named_modules())
    quantised = [
        (path, QuantizedLinear.from_linear(layers[path], size, precision.bits))
        for path, size in groups.items()
    ]
    if quantised:
        model.update_modules(tree_unflatten(quantised))


def _values(
    model: nn.Module,
    found: Mapping[str, StoredTensor],
    groups: Mapping[str, int],
    precision: Precision,
    file: Path,
    component: str,
) -> Iterator[tuple[str, mx.array]]:
    """Yield each parameter, computed; complain at the end of all that cannot be used."""
    not_finite: list[str] = []
    too_large: list[str] = []
    for batch in _batches(found):
        weights = {}
        for name, tensor in batch.items():
            bits = tensor.read()
            if not tensor.is_finite(bits):
                not_finite.append(tensor.name)
            weights[name] = tensor.to_mlx(bits)
        if not_finite:
            continue  # what follows would be computed for nothing
        made = to_mlx(weights)
        made = {name: value.astype(DTYPES[precision.dtype]) for name, value in made.items()}
        made = {name: mx.contiguous(value) for name, value in made.items()}
        del weights
        too_large += _overflowing(made, batch, precision)
        for name, value in made.items():
            path = name.removesuffix(".weight")
            if path in groups and path != name:
                yield from _quantised(path, value, groups[path], precision)
            else:
                mx.eval(value)
                yield name, value
    _refuse(file, component, not_finite, too_large)


def _batches(found: Mapping[str, StoredTensor]) -> Iterator[dict[str, StoredTensor]]:
    batch: dict[str, StoredTensor] = {}
    size = 0
    for name, tensor in found.items():
        if batch and size + tensor.size * 4 > BATCH_BYTES:
            yield batch
            batch, size = {}, 0
        batch[name] = tensor
        size += tensor.size * 4
    yield batch


def _quantised(
    path: str, weight: mx.array, group_size: int, precision: Precision
) -> Iterator[tuple[str, mx.array]]:
    assert precision.bits is not None
    parts = mx.quantize(weight, group_size=group_size, bits=precision.bits)
    mx.eval(parts)
    for kind, value in zip(("weight", "scales", "biases"), parts, strict=True):
        yield f"{path}.{kind}", value


def _overflowing(
    made: Mapping[str, mx.array], batch: Mapping[str, StoredTensor], precision: Precision
) -> list[str]:
    """Return which tensors, finite as stored, are too large for the type."""
    wider = {"F64"} if precision.dtype != "float16" else set(FLOATS) - {"F16"}
    wide = [name for name in made if batch[name].dtype in wider]
    return [batch[n].name for n in wide if not np.isfinite(np.array(mx.abs(made[n]).max()))]


def _refuse(file: Path, component: str, not_finite: list[str], too_large: list[str]) -> None:
    if not_finite:
        raise ModelError(
            f"{file}: {component}: {len(not_finite)} tensors have NaN or infinity in them "
            f"({named(not_finite)})",
            hint="every image would be black: the file is damaged, or a merge of models went wrong",
        )
    if too_large:
        raise ModelError(
            f"{file}: {component}: {len(too_large)} tensors have numbers too large for the type "
            f"({named(too_large)})",
            hint="float16 ends at 65504: load them as bfloat16 or float32",
        )
