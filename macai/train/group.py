"""Runs that several started processes share, on one machine or several: `mlx.launch`.

MLX's distributed layer carries what they tell each other: the ring of sockets anywhere, MPI, JACCL
or NCCL where it was built with them. Each has the whole model and the rows; the first one writes.
"""

import os
from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_unflatten

from macai.errors import TrainingError
from macai.models.arrays import named_arrays, scalar
from macai.train.exhausted import exhausted

_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""What mlx.launch, Open MPI and MPICH tell the processes that they start."""


class ElsewhereError(TrainingError):
    """Another process of the group ran out of memory."""


class Group:
    """The processes of a run, in which each takes the same steps in the same order.

    Before they tell each other numbers, they agree that all are well: so what goes wrong in one
    between two such moments is known to all at the next.

    Attributes:
        rank: The number of this process.
        size: How many there are.
        stopping: Whether one of them was asked to stop, when they last agreed.
    """

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group
        self.rank, self.size = group.rank(), group.size()
        self.stopping = False

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def agree(self, *, failed: bool = False, stop: bool = False) -> None:
        """Meet the others; ElsewhereError if one of them, but not this one, has failed."""
        failures, stops = self.counts([failed, stop])
        self.stopping = stops > 0
        if failures and not failed:
            raise ElsewhereError("another process ran out of memory")

    def sum(self, array: mx.array) -> mx.array:
        """Return the sum over the processes, evaluated: the same bits in each.

        Raises:
            TrainingError: one of them is gone.
        """
        total = mx.distributed.all_sum(array, group=self._group)
        try:
            mx.eval(total)
        except RuntimeError as e:
            if exhausted(e):
                raise
            raise TrainingError(
                f"another process of the run is gone: {e}",
                hint="what it said is above; go on with --resume, the last checkpoint is intact",
            ) from e
        return total

    def counts(self, values: Sequence[int]) -> list[int]:
        """Return the sum of each number."""
        return cast(list[int], self.sum(mx.array(list(values), mx.int64)).tolist())

    def number(self, value: float) -> float:
        """Return the sum of a number, which is rounded to float32."""
        return scalar(self.sum(mx.array([value])))

    def text(self, text: str) -> str:
        """Return what the first process gives."""
        own = text.encode() if self.first else b""
        (length,) = self.counts([len(own)])
        padded = np.frombuffer(own.ljust(length, b"\0"), np.uint8).astype(np.int32)
        return bytes(np.array(self.sum(mx.array(padded)), np.uint8)).decode()

    def share(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Give all the trained parameters and the optimiser's state of the first process."""

        def of_first(arrays: dict[str, mx.array]) -> list[tuple[str, mx.array]]:
            # By name: a state that was read from a file has them in another order.
            own = sorted(arrays.items())
            return [(name, self.sum(a if self.first else mx.zeros_like(a))) for name, a in own]

        model.update(tree_unflatten(of_first(named_arrays(model.trainable_parameters()))))
        optimizer.state = tree_unflatten(of_first(named_arrays(optimizer.state)))


def launched() -> Group | None:
    """Return the group that this process was started in, or None if it is alone."""
    if not any(name in os.environ for name in _LAUNCHED):
        return None
    group = mx.distributed.init()
    return Group(group) if group.size() > 1 else None
