"""The parts of a step on pictures, computed by this process or by others besides."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import mlx.core as mx

from macai.diffusion.training.base import Base, open_base
from macai.diffusion.training.cpu_ops import cpu_ops
from macai.diffusion.training.plan import Slot
from macai.finetune_diffusion.data import Pictures
from macai.finetune_diffusion.gradient import ImageGradient
from macai.finetune_diffusion.task import Task
from macai.finetune_diffusion.tasks import make_task
from macai.recipe import DiffusionRecipe
from macai.train.job import Opened
from macai.train.machine import MEMORY_SHARE, available_bytes, cores

LEAST_PICTURES = 2000  # of a run: one of fewer is over before processes that start have paid
COPIES = 4  # of the weights that a process needs room for: gradients and what is computed

Part = tuple[int, Sequence[Slot]]
"""A step's number, and places in it that are of one size."""


@dataclass(slots=True, kw_only=True)
class ImageJob:
    """What a process needs, besides parameters and parts, to compute what any other would.

    Attributes:
        workers: Processes in all.
        model: Of the recipe.
        recipe: All of it.
        pictures: Of the run.
        out: Its output folder, for what is kept there.
        side: Of the pictures that are sampled.
        task: Of this process; not sent to others.
    """

    workers: int
    model: Path
    recipe: DiffusionRecipe
    pictures: Pictures
    out: Path
    side: int
    task: Task | None

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "task"}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.task = None

    def made(self, parts: Iterable[tuple[int, Part]]) -> Iterator[tuple[int, Callable[[], object]]]:
        """Yield the number of each part and what makes its batch."""
        assert self.task is not None
        for number, (step, slots) in parts:
            yield number, partial(self.task.part, step, slots)

    def opened(self) -> Opened:
        """Load the model and make of it what is trained."""
        options = self.recipe.diffusion
        base = open_base(self.model, random=options.init == "random", vae=options.vae)
        self.task = make_task(
            self.recipe, base, self.pictures, self.out, self.side, workers=self.workers
        )
        model = self.task.model
        return Opened(model, ImageGradient(model, self.task.loss), cpu_ops(model))


def divided(slots: Sequence[Slot], workers: int) -> list[Sequence[Slot]]:
    """Cut a part into as many as there are workers, of about one length, none empty."""
    count = min(workers, len(slots))
    ends = [len(slots) * n // count for n in range(count + 1)]
    return [slots[a:b] for a, b in pairwise(ends)]


def workers_for(recipe: DiffusionRecipe, base: Base, *, steps: int, before: int) -> int:
    """Return how many processes shall compute the parts of a step.

    As `macai.train.machine.workers_for`: on a GPU one; what was asked for; what an earlier part of
    the run had; else two, if machine and run are large enough.
    """
    asked = recipe.train.workers
    if mx.default_device() != mx.cpu:
        return 1
    if asked or before:
        return asked or min(before, cores())
    if cores() < 2 or recipe.batch.images < 2 or steps * recipe.batch.images < LEAST_PICTURES:
        return 1
    needed = sum(checkpoint.bytes(name) for checkpoint, name in base.weights.values())
    return 2 if 2 * COPIES * needed <= MEMORY_SHARE * available_bytes() else 1
