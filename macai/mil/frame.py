"""What one run holds: its values, its states, and where it overflowed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Overflow:
    """An operation that made infinities or NaN out of finite inputs; `count` elements of them."""

    name: str
    type: str
    output: str
    count: int


class StateBuffers:
    """The states of a run: float32 while it lasts, given back in fp16 when it has succeeded."""

    def __init__(self, given: dict[str, np.ndarray]) -> None:
        self._given = given
        self._working: dict[str, np.ndarray] = {}
        self._written: set[str] = set()

    def buffer(self, name: str) -> np.ndarray:
        """Return the state itself, float32: changing it changes the state."""
        if name not in self._working:
            self._working[name] = self._given[name].astype(np.float32)
        return self._working[name]

    def read(self, name: str) -> np.ndarray:
        """Return what the state is now; a later write does not change it."""
        view = self.buffer(name).view()
        view.flags.writeable = False
        return view

    def write(self, name: str, value: np.ndarray) -> None:
        """Set the state to `value`, rounded to fp16 as it is stored."""
        self._working[name] = value.astype(np.float16).astype(np.float32)
        self._written.add(name)

    def mark_written(self, name: str) -> None:
        """Say that `buffer(name)` was changed."""
        self._written.add(name)

    def commit(self) -> None:
        """Give the states that were written back to the caller."""
        for name in self._written:
            self._given[name][...] = self._working[name]


@dataclass(slots=True)
class Frame:
    """One run of a plan.

    Attributes:
        values: A place for every value of the function.
        peaks: Filled with the largest magnitude of each value declared fp16, by its name, if given.
        kept: Its keys are names of values, which it is filled with, if given.
    """

    values: list[Any]
    states: StateBuffers
    overflows: list[Overflow] = field(default_factory=list)
    peaks: dict[str, float] | None = None
    kept: dict[str, np.ndarray] | None = None

    def note(self, name: str, array: np.ndarray) -> None:
        """Keep the largest magnitude of a value."""
        if self.peaks is not None and array.size:
            largest = max(float(array.max()), -float(array.min()))
            self.peaks[name] = max(self.peaks.get(name, 0.0), largest)


Step = Callable[[Frame], None]
