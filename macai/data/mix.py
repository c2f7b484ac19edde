"""Several data sets in one run: which rows an epoch has, and how many steps that makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from macai.data.batches import Steps


def rows_seen(
    sizes: Sequence[int], weights: Sequence[float], *, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return the rows of an epoch: of a set of weight w each is seen w times an epoch.

    After k epochs each row was seen as often as k w rounded down or up, and within an epoch the set
    as often as its rows times w, give or take one. So weight 0.25 shows another quarter of the rows
    in each epoch, all of them in four, and 2.5 shows each two or three times.

    Args:
        sizes: Rows of each set.
        weights: Of each, above 0.
        seed: With the set's place decides in which epochs a row is seen.
        epoch: Counted from 0.

    Returns:
        int64 [N]; places in all sets, one after the other. A row is there as often as it is seen.
    """
    rows, before = [], 0
    for place, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, place, size])))
        phase = rng.permutation(size) / size  # from 0 to 1, evenly
        times = np.floor((epoch + 1) * weight + phase) - np.floor(epoch * weight + phase)
        rows.append(before + np.repeat(np.arange(size), times.astype(np.int64)))
        before += size
    return np.concatenate(rows)


@dataclass(slots=True)
class Epochs:
    """Steps numbered through all epochs, which need not have as many.

    Attributes:
        plan: Epoch, counted from 0 -> its steps.
        alike: Whether all have as many.
    """

    plan: Callable[[int], Steps]
    alike: bool
    _counts: list[int] = field(default_factory=list)

    def steps(self, epoch: int) -> int:
        """Return how many steps an epoch has."""
        if self.alike:
            epoch = 0
        while len(self._counts) <= epoch:
            self._counts.append(len(self.plan(len(self._counts))))
        return self._counts[epoch]

    def total(self, epochs: float) -> int:
        """Return the steps of so many epochs; at least 1."""
        if self.alike:
            return max(1, round(epochs * self.steps(0)))
        whole = int(epochs)
        part = round((epochs - whole) * self.steps(whole)) if epochs > whole else 0
        return max(1, sum(map(self.steps, range(whole))) + part)

    def place(self, step: int) -> tuple[int, int]:
        """Return in which epoch a step is, counted from 0, and how many of it come before."""
        if self.alike:
            return divmod(step, self.steps(0))
        epoch = 0
        while step >= self.steps(epoch):
            step -= self.steps(epoch)
            epoch += 1
        return epoch, step
