"""What a model's description says of its inputs, outputs and states."""

from dataclasses import dataclass

import numpy as np

from macai.errors import PackageError
from macai.mil.types import DAMAGED, Proto, StateType, TensorType, ValueType

ARRAY_DTYPES = {65568: "fp32", 65600: "fp64", 131104: "int32", 131080: "int8", 65552: "fp16"}


@dataclass(frozen=True, slots=True)
class Range:
    """The sizes a flexible dimension may have; `upper` is None where there is no limit."""

    lower: int
    upper: int | None

    def __str__(self) -> str:
        return f"{self.lower}..{'' if self.upper is None else self.upper}"

    def __contains__(self, size: int) -> bool:
        return size >= self.lower and (self.upper is None or size <= self.upper)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input, output or state of a function.

    Attributes:
        dtype: MIL's name of it: `fp16`, `fp32`, `int32` and so on.
        shape: A size, a Range of sizes, or None (not known, or one of `enumerated`) each; None for
            a tensor of which not even the rank is known.
        enumerated: The shapes that are allowed, the default one first; None if any is.
        default_shape: What the description gives as the shape, also where others are allowed.
        optional: Whether a run may leave it out; it is `default` everywhere then.
    """

    dtype: str
    shape: tuple[int | Range | None, ...] | None
    enumerated: tuple[tuple[int, ...], ...] | None = None
    default_shape: tuple[int, ...] | None = None
    optional: bool = False
    default: float = 0.0

    def __str__(self) -> str:
        if self.enumerated is not None:
            return f"{self.dtype} " + " or ".join(str(list(shape)) for shape in self.enumerated)
        if self.shape is None:
            return f"{self.dtype} [...]"
        sizes = ("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} [{', '.join(sizes)}]"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of this shape may be given."""
        if self.enumerated is not None:
            return shape in self.enumerated
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(map(_fits, self.shape, shape))


def _fits(allowed: int | Range | None, size: int) -> bool:
    if isinstance(allowed, Range):
        return size in allowed
    return allowed is None or size == allowed


def tensor_spec(type_: ValueType, feature: Proto, where: str) -> TensorSpec:
    """Join what the program (`type_`) and the description (a FeatureDescription) say of one value.

    Raises:
        PackageError: they contradict each other, or it is no tensor.
    """
    tensor = type_.tensor if isinstance(type_, StateType) else type_
    if not isinstance(tensor, TensorType):
        return TensorSpec(str(type_), None)
    dtype = tensor.dtype.name
    array = _array_type(feature)
    if array is None:
        return TensorSpec(dtype, tensor.shape)
    described = ARRAY_DTYPES.get(array.dataType)
    if described != dtype:
        raise PackageError(
            f"{where}: described as {described}, but {tensor} in the program", hint=DAMAGED
        )
    shape = tuple(int(size) for size in array.shape)
    return _flexible(tensor, array, shape, bool(feature.type.isOptional), where)


def _array_type(feature: Proto) -> Proto:
    if feature is None:
        return None
    kind = feature.type.WhichOneof("Type")
    if kind == "multiArrayType":
        return feature.type.multiArrayType
    if kind == "stateType":
        return feature.type.stateType.arrayType
    return None


def _flexible(
    tensor: TensorType, array: Proto, default_shape: tuple[int, ...], optional: bool, where: str
) -> TensorSpec:
    shape: tuple[int | Range | None, ...] | None = tensor.shape
    enumerated = None
    kind = array.WhichOneof("ShapeFlexibility")
    if kind == "enumeratedShapes":
        others = (tuple(int(n) for n in s.shape) for s in array.enumeratedShapes.shapes)
        enumerated = tuple(dict.fromkeys([default_shape, *others]))
    elif kind == "shapeRange":
        ranges = [_range(r) for r in array.shapeRange.sizeRanges]
        shape = tuple(r.lower if r.lower == r.upper else r for r in ranges)
    elif shape is not None and default_shape:
        # A dimension unknown to the program that no flexibility is declared for has one size.
        shape = default_shape if len(default_shape) == len(shape) else shape
    spec = TensorSpec(
        tensor.dtype.name, shape, enumerated, default_shape or None, optional, _default(array)
    )
    _check_agree(tensor, spec, where)
    return spec


def _range(proto: Proto) -> Range:
    upper = int(proto.upperBound)
    return Range(int(proto.lowerBound), None if upper < 0 else upper)


def _default(array: Proto) -> float:
    kind = array.WhichOneof("defaultOptionalValue")
    return float(getattr(array, kind)) if kind else 0.0


def _check_agree(tensor: TensorType, spec: TensorSpec, where: str) -> None:
    """Refuse a description with a size that the program cannot take."""
    if tensor.shape is None:
        return
    for shape in spec.enumerated or [spec.shape or ()]:
        same_rank = len(shape) == len(tensor.shape)
        # Outputs may be described without a shape.
        if shape and not (same_rank and all(map(_overlap, tensor.shape, shape))):
            raise PackageError(
                f"{where}: described as {spec}, but {tensor} in the program", hint=DAMAGED
            )


def _overlap(declared: int | None, described: int | Range | None) -> bool:
    return declared is None or described is None or _fits(described, declared)


def default_value(spec: TensorSpec) -> np.ndarray | None:
    """Return what an optional input is when it is left out; None if its shape is not known."""
    shape = spec.default_shape
    if shape is None:
        return None
    return np.full(shape, spec.default, np.int32 if "int" in spec.dtype else np.float32)
