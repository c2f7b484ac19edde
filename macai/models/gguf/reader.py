"""Read a GGUF file: header, metadata, and tensors as views of the mapped bytes.

Every count and length of the header is checked against the bytes that are left before anything is
read or allocated, so a damaged file costs no more memory than its size. Nothing is decoded here.
"""

import itertools
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from macai.errors import FormatError
from macai.models.gguf.blocks import TENSOR_TYPES, TYPE_NAMES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MIN_METADATA_BYTES = 8 + 4 + 1  # the shortest: an empty key, a type and a byte
MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # no name, one dimension, type, offset

SCALARS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""numpy's type of each metadata value that has a fixed size; 8 is a string and 9 an array."""
STRING, ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a GGUF file.

    Attributes:
        name: As in the file, such as `blk.0.attn_q.weight`.
        type: Its type's name, such as `Q4_1`.
        shape: Outermost dimension first (the file has them the other way round).
        rows: uint8 [outermost dimensions multiplied, bytes of one row], a read-only view of the
            mapped file; a vector is one row.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    rows: np.ndarray


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A GGUF file: its metadata by key and its tensors by name, in the order of the file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_gguf(path: Path) -> GGUFFile:
    """Map `path` and read its header.

    Metadata arrays of numbers come as numpy arrays, all others as lists.

    Raises:
        FormatError: not a GGUF file, a version or a tensor type not known, or any length, offset
            or name in it that cannot be right.
    """
    return _Reader(path).read()


class _Reader:
    """A cursor over the mapped file that refuses to leave it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as f:
                size = path.stat().st_size
                # An empty file cannot be mapped.
                self.bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as e:
            raise FormatError(f"{path}: cannot be opened: {e.strerror or e}") from e
        self.at = 0

    def read(self) -> GGUFFile:
        self._check_start()
        tensor_count = self._count("tensors", MIN_TENSOR_BYTES, left_after=8)
        metadata_count = self._count("metadata entries", MIN_METADATA_BYTES)
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._damaged(f"metadata key {key!r} is there twice")
            metadata[key] = self._value(self._number("<u4"), key)
        if metadata.get("split.count", 1) not in (0, 1):
            raise FormatError(
                f"{self.path}: one part of a model split over {metadata['split.count']} files",
                hint="join the parts first, with llama.cpp's `llama-gguf-split --merge`",
            )
        entries = [self._tensor_entry() for _ in range(tensor_count)]
        return GGUFFile(self.path, metadata, self._locate(entries, self._alignment(metadata)))

    def _check_start(self) -> None:
        if self.bytes[:4] != MAGIC:
            raise FormatError(
                f"{self.path}: not a GGUF file: it starts with {self.bytes[:4]!r}, not b'GGUF'",
                hint="is the download complete? a web page saved by mistake starts with b'<!DO'",
            )
        self.at = 4
        version = self._number("<u4")
        if version in [int.from_bytes(v.to_bytes(4, "little"), "big") for v in VERSIONS]:
            raise FormatError(
                f"{self.path}: a big-endian GGUF file", hint="get the little-endian one"
            )
        if version not in VERSIONS:
            raise FormatError(
                f"{self.path}: GGUF version {version} is not known",
                hint="versions 2 and 3 are; convert the model again with a current llama.cpp",
            )

    def _alignment(self, metadata: dict[str, Any]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(value) is not int or value < 1 or value & (value - 1):
            raise self._damaged(f"general.alignment is {value!r}, not a power of 2")
        return value

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("a tensor's name")
        n_dimensions = self._number("<u4")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} has {n_dimensions} dimensions")
        shape = tuple(self._number("<u8") for _ in range(n_dimensions))[::-1]
        return name, shape, self._number("<u4"), self._number("<u8")

    def _locate(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: int
    ) -> dict[str, Tensor]:
        """Return the tensors, each inside the file, aligned, and none over another."""
        self._check_types(entries)
        start = -(-self.at // alignment) * alignment
        data = np.frombuffer(self.bytes, np.uint8)
        tensors: dict[str, Tensor] = {}
        ends: list[tuple[int, int, str]] = []
        for name, shape, number, offset in entries:
            if name in tensors:
                raise self._damaged(f"tensor {name!r} is there twice")
            row_bytes, n_rows = self._row_layout(name, shape, number)
            begin, end = start + offset, start + offset + row_bytes * n_rows
            if end > len(data):
                raise self._damaged(
                    f"tensor {name!r} ends at byte {end}, the file at {len(data)}: truncated"
                )
            if offset % alignment:
                raise self._damaged(
                    f"tensor {name!r} starts at {offset}, no multiple of {alignment}"
                )
            ends.append((begin, end, name))
            rows = data[begin:end].reshape(n_rows, row_bytes)
            tensors[name] = Tensor(name, TYPE_NAMES[number], shape, rows)
        ends.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(ends):
            if begin < end:
                raise self._damaged(f"tensors {first!r} and {second!r} overlap")
        return tensors

    def _check_types(self, entries: list[tuple[str, tuple[int, ...], int, int]]) -> None:
        names = {n: TYPE_NAMES.get(n, f"number {n}") for _, _, n, _ in entries}
        unknown = {n: name for n, name in names.items() if name not in TENSOR_TYPES}
        if not unknown:
            return
        parts = []
        for number, type_name in sorted(unknown.items()):
            of_type = [name for name, _, n, _ in entries if n == number]
            parts.append(f"{type_name} ({len(of_type)} tensors, first {of_type[0]!r})")
        raise FormatError(
            f"{self.path}: tensor types that cannot be read: {', '.join(parts)}",
            hint=f"get the model in one of {', '.join(TENSOR_TYPES)}",
        )

    def _row_layout(self, name: str, shape: tuple[int, ...], number: int) -> tuple[int, int]:
        kind = TENSOR_TYPES[TYPE_NAMES[number]]
        n_rows = 1
        for size in shape[:-1]:
            n_rows *= size
        if n_rows < 1 or shape[-1] < 1 or shape[-1] % kind.size:
            raise self._damaged(
                f"tensor {name!r} of type {TYPE_NAMES[number]} cannot have shape {list(shape)}"
            )
        return shape[-1] // kind.size * kind.bytes, n_rows

    def _value(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == STRING:
            return self._string(repr(key))
        if kind == ARRAY:
            return self._array(self._number("<u4"), key)
        raise self._damaged(f"metadata {key!r} has type {kind}, which is not known")

    def _array(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            count = self._count(f"values of {key!r}", dtype.itemsize)
            array = np.frombuffer(self._take(count * dtype.itemsize, key), dtype)
            return array.astype(dtype.newbyteorder("="))
        if kind == STRING:
            return [self._string(repr(key)) for _ in range(self._count(f"values of {key!r}", 8))]
        raise self._damaged(f"metadata {key!r} is an array of type {kind}, which is not known")

    def _string(self, what: str) -> str:
        length = self._count(f"bytes of {what}", 1)
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError as e:
            raise self._damaged(f"{what} is not UTF-8 text") from e

    def _count(self, what: str, bytes_each: int, *, left_after: int = 0) -> int:
        """Read a count, and refuse one that the rest of the file cannot hold."""
        count = self._number("<u8")
        left = len(self.bytes) - self.at - left_after
        if count * bytes_each > left:
            raise self._damaged(f"{count} {what}, but only {left} bytes are left: truncated")
        return count

    def _number(self, dtype: str) -> Any:
        code = {"?": "?", "1": "b", "2": "h", "4": "i", "8": "q"}[dtype[-1]]
        if "u" in dtype:
            code = code.upper()
        if "f" in dtype:
            code = {"i": "f", "q": "d"}[code]
        return struct.unpack("<" + code, self._take(struct.calcsize(code), "a number"))[0]

    def _take(self, length: int, what: str) -> bytes:
        end = self.at + length
        if end > len(self.bytes):
            raise self._damaged(f"it ends inside {what}: truncated")
        taken = self.bytes[self.at : end]
        self.at = end
        return taken

    def _damaged(self, message: str) -> FormatError:
        return FormatError(
            f"{self.path}: {message}",
            hint="the file is damaged or incomplete: download it again and compare its checksum",
        )
