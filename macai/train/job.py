"""What the processes of a run share: a job, sent once, and memory for the numbers of each step."""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from macai.data.batches import Plan
from macai.data.tokens import Example
from macai.models.arrays import named_arrays, scalar
from macai.models.cpu_ops import cpu_ops
from macai.models.load import load_network
from macai.models.recompute import recomputed
from macai.train.gradient import Sums
from macai.train.loss import logits_for
from macai.train.objective import TOKENS, Objective

Made = Iterable[tuple[int, Callable[[], Any]]]
"""Of each part its number in the step, and what makes its batch."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that a process computes gradients of.

    Attributes:
        model: Its trainable parameters change with each step.
        gradient: (parts, seed of the step) -> their sums.
        ops: How it computes meanwhile.
    """

    model: nn.Module
    gradient: Callable[[Made, int], Sums]
    ops: AbstractContextManager[None]


class Work(Protocol):
    """What a process needs, besides parameters and parts, to compute what any other would."""

    @property
    def workers(self) -> int:
        """Processes in all."""
        ...

    @property
    def model(self) -> Path:
        """Where the weights are, to name in errors."""
        ...

    def made(self, parts: Iterable[tuple[int, Any]]) -> Made:
        """Yield the number of each part and what makes its batch."""
        ...

    def opened(self) -> Opened:
        """Load the model, in another process than the one that trains it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The work on a language model.

    Attributes:
        workers: Processes in all.
        model: The directory of the base model.
        prepare: What makes a model ready to be trained, in place, as in this process.
        examples: What the rows of a plan are indices into.
        pad_id: See `macai.data.batches.make_batch`.
        prefix: As well.
        objective: What is made small.
        recompute: See `training_ops`.
    """

    workers: int
    model: Path
    prepare: Callable[[nn.Module], None]
    examples: Sequence[Example]
    pad_id: int
    prefix: int
    objective: Objective = TOKENS
    recompute: bool = False

    def made(self, parts: Iterable[tuple[int, Plan]]) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Yield the number of each part and what makes its batch."""
        for number, plan in parts:
            options = {"pad_id": self.pad_id, "prefix": self.prefix}
            make = partial(self.objective.batch, self.examples, plan, **options)
            yield number, make

    def opened(self) -> Opened:
        """Load the model and make ready what is trained."""
        model = load_network(self.model)
        logits = logits_for(model)
        self.prepare(model)
        ops = training_ops(model, recompute=self.recompute)
        return Opened(model, self.objective.gradient(model, logits), ops)


@contextmanager
def training_ops(model: nn.Module, *, recompute: bool) -> Iterator[None]:
    """Have a language model compute as it does in training; `recompute`: with less memory."""
    with cpu_ops(model), recomputed(model, wanted=recompute):
        yield


class Board:
    """Memory of several processes: a vector of parameters, and a gradient of each worker.

    float32, all of one length. Through a pipe they would be copied four times.
    """

    def __init__(self, file: int, workers: int, length: int) -> None:
        """Map the memory behind the file descriptor, which may be closed afterwards."""
        memory = mmap.mmap(file, _bytes(workers, length))
        self._rows: NDArray[np.float32] = np.frombuffer(memory, np.float32).reshape(-1, length)

    @staticmethod
    def file(workers: int, length: int) -> int:
        """Return a descriptor of new memory, which no name leads to and no process outlives."""
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("macai")
        else:
            with tempfile.TemporaryFile() as temporary:
                file = os.dup(temporary.fileno())
        os.ftruncate(file, _bytes(workers, length))
        return file

    def write(self, row: int, vector: mx.array) -> None:
        """Put down a float32 [length]: row 0 is for parameters, 1 on for the workers' gradients."""
        np.copyto(self._rows[row], np.asarray(vector))

    def read(self, row: int) -> mx.array:
        """Return a copy, float32 [length]."""
        return mx.array(self._rows[row])


def _bytes(workers: int, length: int) -> int:
    return workers * length * 4  # the parent needs no gradient there, but parameters


def base_sums(model: nn.Module) -> dict[str, float]:
    """Return the sum of the magnitudes of each frozen array: what two processes compare."""
    trained = named_arrays(model.trainable_parameters())
    return {
        name: scalar(mx.abs(array.astype(mx.float32)).sum())
        for name, array in named_arrays(model.parameters()).items()
        if name not in trained
    }
