"""The types of MIL values as a package declares them."""

from dataclasses import dataclass
from typing import Any

from macai.errors import PackageError
from macai.mil.dtypes import PROTO_DTYPES, DType

Proto = Any
"""A protobuf message: its classes have no types for mypy."""

MAX_RANK = 16
MAX_ELEMENTS = 1 << 40


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor; `shape` has None for a dimension that only a run knows, and is None if all are."""

    dtype: DType
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype.name} [...]"
        return f"{self.dtype.name} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    @property
    def elements(self) -> int:
        """How many values it has, counting an unknown dimension as one."""
        count = 1
        for size in self.shape or ():
            count *= 1 if size is None else size
        return count


@dataclass(frozen=True, slots=True)
class ListType:
    """A list of tensors, or of strings."""

    element: TensorType

    def __str__(self) -> str:
        return f"list of {self.element}"


@dataclass(frozen=True, slots=True)
class StateType:
    """A tensor that outlives a run."""

    tensor: TensorType

    def __str__(self) -> str:
        return f"state of {self.tensor}"


@dataclass(frozen=True, slots=True)
class DictionaryType:
    """What `classify` returns."""

    def __str__(self) -> str:
        return "dictionary"


ValueType = TensorType | ListType | StateType | DictionaryType


def parse_type(proto: Proto, where: str) -> ValueType:
    """Read a MIL.proto ValueType; `where` begins the message of the PackageError it may raise."""
    kind = proto.WhichOneof("type")
    if kind == "tensorType":
        return _tensor(proto.tensorType, where)
    if kind == "stateType":
        wrapped = proto.stateType.wrappedType
        if wrapped.WhichOneof("type") != "tensorType":
            raise PackageError(f"{where}: a state that holds no tensor", hint=DAMAGED)
        return StateType(_tensor(wrapped.tensorType, where))
    if kind == "listType":
        element = proto.listType.type
        if element.WhichOneof("type") != "tensorType":
            raise PackageError(f"{where}: a list that holds no tensors", hint=DAMAGED)
        return ListType(_tensor(element.tensorType, where))
    if kind == "dictionaryType":
        return DictionaryType()
    raise PackageError(f"{where}: a value of type {kind or 'none'}", hint=DAMAGED)


DAMAGED = "the package is damaged, or written by something that does not know the format"


def _tensor(proto: Proto, where: str) -> TensorType:
    dtype = PROTO_DTYPES.get(proto.dataType)
    if dtype is None:
        raise PackageError(
            f"{where}: data type number {proto.dataType} is not known",
            hint="convert the model to one of " + ", ".join(d.name for d in PROTO_DTYPES.values()),
        )
    if any(d.WhichOneof("dimension") == "unknown" and d.unknown.variadic for d in proto.dimensions):
        return TensorType(dtype, None)
    shape = tuple(_dimension(d, where) for d in proto.dimensions)
    if proto.rank != len(shape) or len(shape) > MAX_RANK:
        raise PackageError(f"{where}: rank {proto.rank} with {len(shape)} sizes", hint=DAMAGED)
    tensor = TensorType(dtype, shape)
    if tensor.elements > MAX_ELEMENTS:
        raise PackageError(f"{where}: a shape of {list(shape)} cannot be meant", hint=DAMAGED)
    return tensor


def _dimension(proto: Proto, where: str) -> int | None:
    kind = proto.WhichOneof("dimension")
    if kind == "constant":
        return int(proto.constant.size)
    if kind == "unknown":
        return None
    raise PackageError(f"{where}: a dimension that is neither known nor unknown", hint=DAMAGED)
