"""Typed access to GGUF metadata, where a missing or wrong value is one clear error."""

import math
from typing import Any

import numpy as np

from macai.errors import FormatError
from macai.models.gguf.reader import GGUFFile

LARGEST = 2**40
"""No count of a model is larger; a damaged one often is."""


class Metadata:
    """The metadata of one file; keys are given below `prefix`."""

    def __init__(self, gguf: GGUFFile, prefix: str = "") -> None:
        self.path = gguf.path
        self._values = gguf.metadata
        self._prefix = prefix

    def below(self) -> list[str]:
        """Return the keys below the prefix, without it."""
        return [k.removeprefix(self._prefix) for k in self._values if self._is_below(k)]

    def has(self, key: str) -> bool:
        """Whether the file holds `key`."""
        return self._prefix + key in self._values

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number of at least 1."""
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise self.wrong(key, "a whole number of at least 1")
        return value

    def index(self, key: str, size: int) -> int:
        """Return a whole number of at least 0 and less than `size`."""
        value = self._get(key, None)
        if type(value) is not int or not 0 <= value < size:
            raise self.wrong(key, f"a whole number below {size}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive, finite number; 1e-5 stored as float32 comes back as 1e-5."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise self.wrong(key, "a positive number")
        return _shortest(float(value))

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._get(key, default)
        if type(value) is not str:
            raise self.wrong(key, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a list of strings."""
        value = self._get(key, None)
        if type(value) is not list:
            raise self.wrong(key, "a list of strings")
        return value

    def numbers(self, key: str, length: int) -> list[Any]:
        """Return a list of `length` finite numbers."""
        value = self._get(key, None)
        numbers = value.tolist() if hasattr(value, "tolist") else []
        if len(numbers) != length or not all(math.isfinite(n) for n in numbers):
            raise self.wrong(key, f"a list of {length} numbers")
        return numbers

    def octets(self, key: str) -> bytes:
        """Return an array of numbers of one byte; empty where the file has none."""
        if not self.has(key):
            return b""
        value = self._values[self._prefix + key]
        if not isinstance(value, np.ndarray) or value.dtype.itemsize != 1:
            raise self.wrong(key, "an array of bytes")
        return value.tobytes()

    def wrong(self, key: str, wanted: str) -> FormatError:
        """Return the error that says what `key` holds and what is wanted."""
        value = repr(self._values.get(self._prefix + key))
        shown = value if len(value) <= 60 else value[:57] + "..."
        return FormatError(
            f"{self.path}: metadata {self._prefix + key!r} is {shown}, not {wanted}",
            hint="the file is damaged, or was written by a tool that does not follow the format",
        )

    def _is_below(self, key: str) -> bool:
        return key.startswith(self._prefix)

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(self._prefix + key, default)
        if value is None:
            raise FormatError(
                f"{self.path}: metadata {self._prefix + key!r} is missing",
                hint="convert the model again with a current llama.cpp",
            )
        return value


def _shortest(value: float) -> float:
    if value > np.finfo(np.float32).max or float(np.float32(value)) != value:
        return value
    return float(str(np.float32(value)))
