"""A compressed weight to the MIL operations that a device expands it with."""

from typing import TYPE_CHECKING

import numpy as np
from coremltools.converters.mil._deployment_compatibility import AvailableTarget
from coremltools.converters.mil.mil.block import curr_opset_version
from coremltools.converters.mil.mil.types import string_to_nptype

from macai.coreml.builder import mb
from macai.coreml.few_values import packed
from macai.coreml.stored import Blocks, Palette, Stored
from macai.errors import ExportError

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering
    from macai.coreml.ops.table import Var  # importing ops imports this module

_FLOATS = {"fp16": np.float16, "fp32": np.float32}


def expanded(lowering: "Lowering", stored: Stored, mil_type: str, name: str) -> "Var":
    """Return the weight as a MIL value of `mil_type`.

    Its parts carry the weight's name, so that all functions of a package share them.

    Raises:
        ExportError: float16 has no room for its scales.
    """
    if isinstance(stored, Blocks):
        return _blocks(lowering, stored, mil_type, name)
    return _palette(lowering, stored, mil_type, name)


def _blocks(lowering: "Lowering", stored: Blocks, mil_type: str, name: str) -> "Var":
    parts = {
        "data": lowering.part(stored.data, stored.dtype, f"{name}.data"),
        "scale": lowering.part(_float(stored.scale, mil_type, name), mil_type, f"{name}.scale"),
    }
    if stored.offset is not None:
        kind = stored.dtype if stored.has_whole_offsets else mil_type
        offset = stored.offset if stored.has_whole_offsets else stored.offset.astype(np.float32)
        parts["offset"] = lowering.part(offset, kind, f"{name}.offset")
    return mb.constexpr_blockwise_shift_scale(**parts)


def _palette(lowering: "Lowering", stored: Palette, mil_type: str, name: str) -> "Var":
    tables = _float(stored.tables, mil_type, name)[..., None]  # of vectors of one value
    dense = mb.constexpr_lut_to_dense(
        indices=lowering.part(stored.indices, f"uint{stored.bits}", f"{name}.indices"),
        lut=lowering.part(tables, mil_type, f"{name}.lut"),
    )
    if stored.scale is None:
        return dense
    scale = lowering.part(_float(stored.scale, mil_type, name), mil_type, f"{name}.scale")
    return mb.constexpr_blockwise_shift_scale(data=dense, scale=scale)


def of_few_values(lowering: "Lowering", stored: Palette, mil_type: str, name: str) -> "Var":
    """Return a palette of one table as a MIL value, in the form of the function's target."""
    if curr_opset_version() >= AvailableTarget.iOS18:
        return expanded(lowering, stored, mil_type, name)
    table = _float(stored.tables.reshape(-1), mil_type, name)
    return mb.constexpr_lut_to_dense(
        indices=lowering.part(packed(stored), "uint8", f"{name}.indices"),
        lut=lowering.part(table, mil_type, f"{name}.lut"),
        shape=np.array(stored.indices.shape, np.uint32),
    )


def _float(array: np.ndarray, mil_type: str, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = array.astype(_FLOATS[mil_type])
    if not np.isfinite(rounded).all():
        raise ExportError(
            f"{name}: values up to {np.abs(array).max():g}, beyond {mil_type}",
            hint="export with precision fp32",
        )
    return rounded


def constant(array: np.ndarray, dtype: str, name: str, mil_name: str) -> "Var":
    """Return a new MIL const of any type, those of fewer than 8 bits among them."""
    kind = _FLOATS.get(dtype) or string_to_nptype(dtype)
    var = mb.const(val=np.ascontiguousarray(array).astype(kind), name=mil_name)
    var.op.weight_id = f"{name}:{dtype}"
    return var
