"""Constants of a program: in the program itself, or in the weight file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from macai.errors import PackageError
from macai.mil import blob
from macai.mil.dtypes import packed_bytes, unpack
from macai.mil.types import (
    DAMAGED,
    DictionaryType,
    ListType,
    Proto,
    TensorType,
    ValueType,
    parse_type,
)

FIELDS = {
    "bool": "bools",
    "string": "strings",
    "fp32": "floats",
    "fp64": "doubles",
    "int16": "ints",
    "uint16": "ints",
    "int32": "ints",
    "int64": "longInts",
    "uint64": "longInts",
}
"""The field of MIL.proto's TensorValue that each type is in; all others are in `bytes`."""


@dataclass(frozen=True, slots=True)
class Value:
    """A constant.

    Attributes:
        type: As declared.
        read: Decodes it anew: an array in its storage type (a read-only view of the file where that
            is possible), a str, or a list of either.
        stored_bytes: What it takes in the weight file; 0 if it is in the program.
        stored: Those bytes, uint8: a view of the file, at its address.
        forget: Lets go of the memory that reading the file took.
    """

    type: ValueType
    read: Callable[[], Any] = field(repr=False)
    stored_bytes: int = 0
    stored: np.ndarray | None = field(default=None, repr=False, compare=False)
    forget: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def stored_at(self) -> int | None:
        """The address of those bytes, which is the same for all who read them."""
        return None if self.stored is None else int(self.stored.__array_interface__["data"][0])


Blobs = Callable[[str, str], blob.BlobFile]
"""(name of a weight file as a program gives it, where) -> the file."""


def parse_value(proto: Proto, blobs: Blobs, where: str) -> Value:
    """Read a MIL.proto Value, checking everything but decoding no weight."""
    type_ = parse_type(proto.type, where)
    kind = proto.WhichOneof("value")
    if kind == "blobFileValue":
        if not isinstance(type_, TensorType) or type_.shape is None or None in type_.shape:
            raise PackageError(f"{where}: a weight of type {type_}", hint=DAMAGED)
        file = blobs(proto.blobFileValue.fileName, where)
        packed = file.packed(proto.blobFileValue.offset, type_, where)
        return Value(
            type_,
            lambda: blob.decode(packed, type_),
            len(packed),
            packed,
            lambda: file.forget(packed),
        )
    if kind != "immediateValue":
        raise PackageError(f"{where}: a constant without a value", hint=DAMAGED)
    value = _immediate(proto.immediateValue, type_, blobs, where)
    return Value(type_, lambda: value)


def _immediate(proto: Proto, type_: ValueType, blobs: Blobs, where: str) -> Any:
    kind = proto.WhichOneof("value")
    if kind == "tensor" and isinstance(type_, TensorType):
        return _tensor(proto.tensor, type_, where)
    if kind == "list" and isinstance(type_, ListType):
        return [parse_value(v, blobs, where).read() for v in proto.list.values]
    if kind == "dictionary" and isinstance(type_, DictionaryType):
        pairs = proto.dictionary.values
        texts = [[parse_value(v, blobs, where).read() for v in (p.key, p.value)] for p in pairs]
        return {str(key): value for key, value in texts}
    raise PackageError(f"{where}: declared {type_}, given as {kind or 'nothing'}", hint=DAMAGED)


def _tensor(proto: Proto, type_: TensorType, where: str) -> Any:
    """Return an array of the declared shape, or a str."""
    name = type_.dtype.name
    if type_.shape is None or None in type_.shape:
        raise PackageError(f"{where}: a constant of type {type_}", hint=DAMAGED)
    expected = FIELDS.get(name, "bytes")
    given = proto.WhichOneof("value")
    # An empty list of values leaves its field unset.
    if given != expected and not (given is None and type_.elements == 0):
        raise PackageError(f"{where}: declared {type_}, given as {given}", hint=DAMAGED)
    values = getattr(proto, expected).values
    size = packed_bytes(type_.dtype, type_.elements) if expected == "bytes" else type_.elements
    if len(values) != size:
        raise PackageError(
            f"{where}: declared {type_}, but it has {len(values)} of {size} {expected}",
            hint=DAMAGED,
        )
    if name == "string":
        return str(values[0]) if type_.shape == () else [str(v) for v in values]
    if expected == "bytes":
        array = unpack(np.frombuffer(values, np.uint8), type_.dtype, type_.elements)
    else:
        array = _numbers(values, type_, where)
    return array.reshape([size or 0 for size in type_.shape])


def _numbers(values: Any, type_: TensorType, where: str) -> np.ndarray:
    try:
        return np.array(list(values), type_.dtype.storage)
    except OverflowError as e:
        raise PackageError(f"{where}: values that do not fit {type_}", hint=DAMAGED) from e
