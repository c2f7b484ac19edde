"""What each writer is, and what it is opened with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Opening:
    """The run that a writer is for.

    Attributes:
        out: The run's folder.
        recipe: The configuration, by table.
        first_step: Steps done before; what was written after them is of steps that are done anew.
    """

    out: Path
    recipe: Mapping[str, object]
    first_step: int


class Writer(Protocol):
    """Shows a run elsewhere; steps are counted from 1."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add a value to the curve of each name."""
        ...

    def picture(self, step: int, name: str, file: Path) -> None:
        """Add a picture from a file."""
        ...

    def close(self) -> None:
        """Write what is left, after which nothing more comes."""
        ...
