"""Constants of a prepared function, decoded when first needed and kept within a budget."""

import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

SMALL_BYTES = 1 << 16


class WeightCache:
    """How much memory decoded weights may still take; shared by all functions of a package.

    Weights are used in the same order in every run, so whichever came first stays: replacing the
    least recently used would throw each away just before its next use.

    Attributes:
        left_bytes: What may still be taken.
        decoded: Weights of the file that are kept, by where they are: a function and the next, and
            a run in float32 and one in float16, have the same ones.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.left_bytes = limit_bytes
        self.decoded: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Return whether `size` bytes may be kept, and count them if so."""
        with self._lock:
            if size > self.left_bytes:
                return False
            self.left_bytes -= size
        return True


class Constant:
    """A value known before a run: a weight, or (`is_computed`) an operation on weights."""

    def __init__(
        self,
        read: Callable[[], Any],
        cache: WeightCache,
        *,
        place: Hashable = None,
        forget: Callable[[], None] = lambda: None,
        is_computed: bool = False,
    ) -> None:
        """Take what reads it.

        Args:
            read: Returns it as it is stored.
            cache: Of the package.
            place: Where in the weight file and as what it is; None if nowhere.
            forget: Called once what was read is not needed any more, as there is a decoded copy.
            is_computed: Whether it is an operation on weights.
        """
        self._read, self._place, self._forget = read, place, forget
        self.is_computed = is_computed
        self._cache = cache
        self._kept: Any = None

    def raw(self) -> Any:
        """Return it as it is stored, such as float16 or uint8."""
        return self._read()

    def get(self) -> Any:
        """Return it as a run computes with it: floats in float32, anything else as it is."""
        if self._kept is not None:
            return self._kept
        if self._place in self._cache.decoded:
            self._kept = self._cache.decoded[self._place]
            return self._kept
        value = self._read()
        if not isinstance(value, np.ndarray):
            self._kept = value
            return value
        decoded = compute_array(value)
        owned = 0 if np.may_share_memory(decoded, value) else decoded.nbytes
        if owned:
            self._forget()
        if self._cache.take(owned):
            self._kept = decoded
            if self._place is not None:
                self._cache.decoded[self._place] = decoded
        return decoded


def compute_array(value: np.ndarray) -> np.ndarray:
    """Return floats as float32, all else unchanged; no copy of what is right already."""
    return value.astype(np.float32, copy=False) if value.dtype.kind == "f" else value
