"""Examples in a file, for data sets that are larger than memory: of a row, 29 bytes stay in it."""

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from macai.data.tokens import Example
from macai.files import explained

ROWS = "rows"  # a folder
Numbers = NDArray[np.int64]


class Sizes(NamedTuple):
    """Of examples, int64 [N] each.

    Attributes:
        tokens: All of them.
        learnt: Those that the loss counts.
        read: Those before the last learnt one.
    """

    tokens: Numbers
    learnt: Numbers
    read: Numbers


class ExampleFile(Sequence[Example]):
    """A sequence that can be appended to; what is in it is read each time it is asked for.

    Not mapped but read: what is read of a map counts as memory of the process, and another program
    that looks for some would have to be told that it is not needed. Pickled, it is the name of the
    file, which another process opens.
    """

    def __init__(self, path: Path) -> None:
        """Begin with none, in place of the file."""
        self.path = path
        with explained(path):
            self._file: BinaryIO = path.open("w+b")
        self._waiting = False  # for the file to be written to
        self._ends = array("q", [0])
        self._tokens, self._learnt, self._read = array("i"), array("i"), array("i")
        self._good = array("b")

    def append(self, example: Example) -> None:
        """Add one; OutputError if the disk is full."""
        self._tokens.append(len(example.ids))
        self._learnt.append(example.learnt_tokens)
        self._read.append(example.read_tokens)
        self._good.append(example.good)
        held = example.ids.tobytes() + example.learn.tobytes() + example.source.encode()
        with explained(self.path):
            self._file.write(held)
        self._ends.append(self._ends[-1] + len(held))
        self._waiting = True

    def extend(self, examples: Sequence[Example]) -> None:
        """Add several."""
        for example in examples:
            self.append(example)

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        if self._waiting:
            with explained(self.path):
                self._file.flush()
            self._waiting = False
        number = range(len(self))[at]
        begin, length = self._ends[number], self._tokens[number]
        held = os.pread(self._file.fileno(), self._ends[number + 1] - begin, begin)
        return Example(
            ids=np.frombuffer(held, np.int32, length),
            learn=np.frombuffer(held, np.bool_, length, 4 * length),
            source=held[5 * length :].decode(),
            good=bool(self._good[number]),
        )

    def sizes(self) -> Sizes:
        """Return how large all of them are, without reading the file."""
        return Sizes(
            *(np.array(values, np.int64) for values in (self._tokens, self._learnt, self._read))
        )

    def close(self) -> None:
        """Close the file, and take it away where it was written."""
        with suppress(OSError):  # a full disk, which was said
            self._file.close()
        if self._file.mode != "rb":
            self.path.unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        if self._waiting:
            self._file.flush()
            self._waiting = False
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.path = self.path.absolute()
        self._file = self.path.open("rb")


class Joined(Sequence[Example]):
    """Several sequences as one."""

    def __init__(self, parts: Sequence[Sequence[Example]]) -> None:
        """Take the parts, which stay as long as they are."""
        self.parts = parts
        self._begins = list(accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self._begins[-1]

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        part = bisect_right(self._begins, number) - 1
        return self.parts[part][number - self._begins[part]]


def sizes_of(examples: Sequence[Example]) -> Sizes:
    """Return how large examples are, wherever they are kept."""
    if isinstance(examples, ExampleFile):
        return examples.sizes()
    if isinstance(examples, Joined):
        parts = [sizes_of(part) for part in examples.parts]
        return Sizes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    rows = [(len(e.ids), e.learnt_tokens, e.read_tokens) for e in examples]
    return Sizes(*np.array(rows, np.int64).reshape(-1, 3).T)


@contextmanager
def example_files(folder: Path, count: int) -> Iterator[list[ExampleFile]]:
    """Yield so many of them in `rows/` of a folder, which is made if need be, and gone afterwards.

    Those of a run that was killed there before are replaced.
    """
    own, new = folder / ROWS, not folder.exists()
    files: list[ExampleFile] = []
    try:
        with explained(folder):
            own.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            files.append(ExampleFile(own / f"{number}.bin"))
        yield files
    finally:
        for file in files:
            file.close()
        with suppress(OSError):  # not if a run has written to it
            own.rmdir()
            if new:
                folder.rmdir()
