"""Read a package's weight file: tensors as views of the mapped bytes.

A tensor's entry is 64 bytes: sentinel, data type, bytes, offset of the data, unused bits of the
last byte. Every number is checked against the size of the file before it is used.
"""

import mmap
import struct
from pathlib import Path

import numpy as np

from macai.errors import PackageError
from macai.mil.dtypes import DTYPES, packed_bytes, unpack
from macai.mil.types import TensorType

ENTRY = struct.Struct("<IIQQQ")
ENTRY_BYTES = 64
SENTINEL = 0xDEADBEEF
BLOB_DTYPES = {dtype.blob: dtype.name for dtype in DTYPES.values() if dtype.blob is not None}


class BlobFile:
    """A mapped weight file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as f:
                size = path.stat().st_size
                # An empty file cannot be mapped.
                data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        except OSError as e:
            raise PackageError(
                f"{path}: cannot be opened: {e.strerror or e}",
                hint="copy the whole .mlpackage folder, weights included",
            ) from e
        self.bytes = np.frombuffer(data or b"", np.uint8)
        self._mapped = data

    def packed(self, offset: int, type_: TensorType, where: str) -> np.ndarray:
        """Return uint8 [bytes], the undecoded values of the entry at byte `offset`.

        Raises:
            PackageError: no such entry, or not one of this type and shape, or it is not all there.
        """
        if offset + ENTRY_BYTES > len(self.bytes):
            raise self._damaged(where, f"its entry at {offset} is past the end, {len(self.bytes)}")
        entry = self.bytes[offset : offset + ENTRY.size].tobytes()
        sentinel, blob_dtype, size, start, _ = ENTRY.unpack(entry)
        if sentinel != SENTINEL:
            raise self._damaged(where, f"there is no entry at {offset}")
        if blob_dtype != type_.dtype.blob:
            found = BLOB_DTYPES.get(blob_dtype, f"type number {blob_dtype}")
            raise self._damaged(where, f"declared {type_}, stored as {found}")
        if size != packed_bytes(type_.dtype, type_.elements):
            raise self._damaged(where, f"declared {type_}, stored in {size} bytes")
        if start + size > len(self.bytes):
            raise self._damaged(where, f"it ends at {start + size}, the file at {len(self.bytes)}")
        return self.bytes[start : start + size]

    def forget(self, packed: np.ndarray) -> None:
        """Have what `packed` returned take no memory until it is read again.

        All that was ever read of a mapped file counts as the process's otherwise.
        """
        if self._mapped is not None and packed.size:
            start = _address(packed) - _address(self.bytes)
            begin = start - start % mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_DONTNEED, begin, start + packed.size - begin)

    def _damaged(self, where: str, message: str) -> PackageError:
        return PackageError(
            f"{where}: {self.path.name}: {message}",
            hint="the weights are truncated or of another model: copy or export the package again",
        )


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def decode(packed: np.ndarray, type_: TensorType) -> np.ndarray:
    """Decode what `BlobFile.packed` returned; a view of the file unless the type is sub-byte."""
    shape = tuple(size or 0 for size in type_.shape or ())
    return unpack(packed, type_.dtype, type_.elements).reshape(shape)
