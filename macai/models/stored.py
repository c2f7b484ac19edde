"""A tensor that is still in its file: where its numbers are and how they are laid out.

Taking rows, transposing and naming cost nothing; only `read` touches the numbers, and its memory is
that of the one tensor.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from macai.errors import FormatError
from macai.models.shown import shown

_NUMPY: dict[str, str] = {
    "BOOL": "?",
    "U8": "<u1",
    "I8": "<i1",
    "F8_E4M3": "<u1",
    "F8_E5M2": "<u1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "BF16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}
"""numpy's type for the bytes of each; float8 and bfloat16 are read as the bits they are."""

# The bits of the least positive number that is not finite: infinity, or NaN where there is none.
_NOT_FINITE = {
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7C,
    "F16": 0x7C00,
    "BF16": 0x7F80,
    "F32": 0x7F800000,
    "F64": 0x7FF0 << 48,
}
FLOATS = tuple(_NOT_FINITE)
ITEM_BYTES = {name: np.dtype(code).itemsize for name, code in _NUMPY.items()}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: The file.
        name: What it is called there.
        dtype: Its type by safetensors' names, a key of ITEM_BYTES.
        shape: Its shape.
        begin: The byte of the file at which its first number is.
        strides: How many numbers to go on for one step of each dimension.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    strides: tuple[int, ...]

    @classmethod
    def contiguous(
        cls, file: Path, name: str, dtype: str, shape: tuple[int, ...], begin: int
    ) -> "StoredTensor":
        """Return a tensor whose numbers follow each other, the last dimension fastest."""
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return cls(file, name, dtype, shape, begin, strides)

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def rows(self, start: int, stop: int) -> "StoredTensor":
        """Return the rows from `start` to before `stop`."""
        begin = self.begin + start * self.strides[0] * ITEM_BYTES[self.dtype]
        return dataclasses.replace(self, shape=(stop - start, *self.shape[1:]), begin=begin)

    def transposed(self) -> "StoredTensor":
        """Return it with its dimensions the other way round."""
        return dataclasses.replace(self, shape=self.shape[::-1], strides=self.strides[::-1])

    def reshaped(self, shape: tuple[int, ...]) -> "StoredTensor":
        """Return it without, or with, dimensions of size 1."""
        left = [s for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        if [n for n in shape if n != 1] != [n for n in self.shape if n != 1]:
            raise ValueError(f"{self.shape} cannot be seen as {shape}")
        strides = tuple(1 if n == 1 else left.pop(0) for n in shape)
        return dataclasses.replace(self, shape=shape, strides=strides)

    def read(self) -> np.ndarray:
        """Return its bits as numpy has them: bfloat16 as uint16, float8 as uint8.

        Raises:
            FormatError: the file ends before the tensor does, or cannot be read.
        """
        dtype = np.dtype(_NUMPY[self.dtype])
        if self.size == 0:
            return np.zeros(self.shape, dtype)
        span = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        try:
            with self.file.open("rb") as f:
                f.seek(self.begin)
                numbers = np.fromfile(f, dtype, span)
        except OSError as e:
            raise FormatError(f"{self.file}: cannot be read: {e.strerror or e}") from e
        if len(numbers) < span:
            raise FormatError(
                f"{self.file}: it ends inside {shown(self.name)}", hint="did it change meanwhile?"
            )
        strides = [s * dtype.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)

    def to_mlx(self, bits: np.ndarray) -> mx.array:
        """Return what `read` gave as an array of MLX; float8 becomes float16, float64 float32."""
        if self.dtype in _FLOAT8:
            return mx.array(_FLOAT8[self.dtype][bits])
        if self.dtype == "BF16":
            return mx.array(bits).view(mx.bfloat16)
        if self.dtype == "F64":
            with np.errstate(over="ignore"):  # an infinity, which whoever loads sees
                bits = bits.astype(np.float32)
        return mx.array(bits)

    def is_finite(self, bits: np.ndarray) -> bool:
        """Return whether what `read` gave has neither NaN nor an infinity in it."""
        least, item = _NOT_FINITE.get(self.dtype), ITEM_BYTES[self.dtype]
        if least is None or not bits.size:
            return True
        # With the sign as a sign the largest is positive, without it negative; no array is made.
        negative = least | 1 << (8 * item - 1)
        return bool(bits.view(f"i{item}").max() < least and bits.view(f"u{item}").max() < negative)


def _float8_e4m3() -> np.ndarray:
    """Return the number of each byte: a sign, 4 bits of exponent, 3 of mantissa; no infinity."""
    byte = np.arange(256)
    sign, exponent, mantissa = 1 - 2 * (byte >> 7), byte >> 3 & 15, byte & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    numbers = sign * np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    numbers[byte & 127 == 127] = np.nan
    return numbers.astype(np.float16)


_FLOAT8 = {
    "F8_E4M3": _float8_e4m3(),
    "F8_E5M2": (np.arange(256, dtype=np.uint16) << 8).view(np.float16),
}
