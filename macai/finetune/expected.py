"""What a run will need, before it is one: memory, and settings that fit the machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from macai.data.batches import LEARNT_STEP, Lengths, Plan, in_order
from macai.data.store import Joined, Numbers, sizes_of
from macai.data.tokens import Example
from macai.errors import TrainingError
from macai.finetune.wanted import micro_tokens_of, steps_of
from macai.models.arrays import named_arrays
from macai.models.sizes import model_sizes, open_hollow
from macai.recipe import Recipe
from macai.train.footprint import Footprint, PartShape, Setup, of_run
from macai.train.machine import available_bytes
from macai.train.objective import Objective
from macai.train.parts import Master, Parts

EPOCHS = 3  # rows of a length are shuffled, so epochs differ a little in what is learnt at once
PROCESS_BYTES = 350_000_000  # Python, MLX, the tokenizer and the rows: what MLX does not count


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How long rows are, by the units of a plan: two rows where answers are compared.

    Attributes:
        lengths: Tokens of each unit to train on.
        sets: How many of them are of each data set.
        learnt: Learnt tokens of each.
        valid_lengths: Of those to check with.
        valid_learnt: As well.
        prefix: See `macai.finetune.wanted.prefix_of`.
    """

    lengths: Lengths
    sets: tuple[int, ...]
    learnt: Numbers
    valid_lengths: Lengths
    valid_learnt: Numbers
    prefix: int = 0

    @classmethod
    def of(
        cls,
        objective: Objective,
        train: Joined,
        valid: Sequence[Example],
        prefix: int = 0,
    ) -> "Rows":
        """Measure examples."""

        def learnt(examples: Sequence[Example]) -> Numbers:
            counts: Numbers = sizes_of(examples).learnt.reshape(-1, objective.answers).sum(axis=1)
            return counts

        return cls(
            lengths=objective.lengths(train),
            sets=tuple(len(objective.lengths(part)) for part in train.parts),
            learnt=learnt(train),
            valid_lengths=objective.lengths(valid),
            valid_learnt=learnt(valid),
            prefix=prefix,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a run is expected to hold.

    Attributes:
        footprint: Of MLX, in all processes: what a run reports as `peak_memory_bytes`.
        part: The part of a step that takes it.
        workers: Processes.
        room: What this process may hold and there is for its workers; 0 where nothing says.
        measured: Whether the terms were compared with runs on this backend.
    """

    footprint: Footprint
    part: PartShape
    workers: int
    room: int
    measured: bool

    @property
    def process_bytes(self) -> int:
        """With what is not MLX's."""
        return self.footprint.total + self.workers * PROCESS_BYTES

    @property
    def needed(self) -> int:
        """What there must be: where nothing was measured, only what needs no measurement."""
        return self.process_bytes if self.measured else self.footprint.fixed

    @property
    def fits(self) -> bool | None:
        """Whether there is room for it; None where the system does not say how much there is."""
        return self.needed <= self.room if self.room else None


def setup_of(
    recipe: Recipe, model: nn.Module, config: dict[str, object], optimizer: optim.Optimizer
) -> Setup:
    """Return what the steps of a run are taken with; the model may be hollow."""
    on_gpu = mx.default_device() != mx.cpu
    inner = optimizer._optimizer if isinstance(optimizer, Master) else optimizer
    return Setup(
        sizes=model_sizes(model, config),
        rule=recipe.optimizer.name,
        state_bytes=sum(a.nbytes for a in named_arrays(optimizer.state).values()),
        divided=isinstance(inner, Parts),
        recompute=recipe.batch.recompute,
        fused=on_gpu,
    )


def expect(
    recipe: Recipe,
    setup: Setup,
    objective: Objective,
    rows: Rows,
    *,
    workers: int,
    lowered: int = 0,
) -> Expectation:
    """Return what a run with these rows will hold.

    Args:
        recipe: Of the run.
        setup: Of `setup_of`.
        objective: Of the run.
        rows: Its.
        workers: Processes.
        lowered: See `macai.finetune.wanted.micro_tokens_of`.
    """
    micro, answers = micro_tokens_of(recipe, lowered), objective.answers
    steps = [
        [_shape(plan, rows.learnt, answers, rows.prefix) for plan in step]
        for epoch in range(min(EPOCHS, ceil(recipe.train.epochs)))
        for step in steps_of(
            recipe, rows.lengths, rows.sets, epoch=epoch, workers=workers, micro_tokens=micro
        )
    ]
    plans = in_order(rows.valid_lengths, tokens=micro)
    valid = [_shape(plan, rows.valid_learnt, answers, rows.prefix) for plan in plans]
    return expect_shapes(setup, steps, valid, workers=workers)


def expect_shapes(
    setup: Setup,
    steps: Sequence[Sequence[PartShape]],
    valid: Sequence[PartShape],
    *,
    workers: int,
) -> Expectation:
    """Return what a run with such parts will hold: see `macai.train.footprint.of_run`."""
    held, part = of_run(setup, steps, valid, workers=workers)
    return Expectation(
        footprint=held,
        part=part,
        workers=workers,
        room=room(),
        measured=not setup.fused or setup.factor != 1,
    )


def room() -> int:
    """Return what programs may still take, and what MLX holds here already; 0 if nothing says."""
    available = available_bytes()
    return available + mx.get_active_memory() if available else 0


def require_room(expected: Expectation) -> None:
    """Raise TrainingError for a run that is expected to need more memory than there is."""
    if expected.fits is not False:
        return
    raise TrainingError(
        f"the run is expected to need {expected.needed / 1e9:.1f} GB of memory, "
        f"and there are {expected.room / 1e9:.1f} GB for it",
        hint="`macai plan` with the same options says what fits, and "
        "--set batch.must_fit=false tries it all the same",
    )


def require_room_for_weights(folder: Path) -> None:
    """Raise TrainingError for a model whose weights alone are more than there is memory for.

    Before they are loaded: on the CPU backend they become float32, however small the files are.
    """
    needed = sum(a.nbytes for a in named_arrays(open_hollow(folder).parameters()).values())
    if (free := room()) and needed > free:
        raise TrainingError(
            f"{folder}: its weights are {needed / 1e9:.1f} GB where they are computed with, "
            f"and there are {free / 1e9:.1f} GB for them",
            hint="choose a smaller model; --set batch.must_fit=false tries it all the same",
        )


def _shape(plan: Plan, learnt: Numbers, answers: int, prefix: int) -> PartShape:
    rows, width = plan.shape
    count = int(learnt[list(plan.rows)].sum())
    return PartShape(
        rows=answers * rows,
        width=-(-width // answers) - prefix,
        learnt=-(-count // LEARNT_STEP) * LEARNT_STEP,
        prefix=prefix,
    )
