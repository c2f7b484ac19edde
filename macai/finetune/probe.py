"""Two real steps of a part as large as a run's largest, to see what they take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from macai.data.batches import Plan
from macai.data.tokens import Example
from macai.errors import TrainingError
from macai.finetune.expected import expect_shapes
from macai.finetune.wanted import method_of, objective_of, optimizer_of
from macai.models.identity import Identity
from macai.models.load import load_network
from macai.recipe import Recipe
from macai.train.footprint import MARGIN, PartShape, Setup, footprint
from macai.train.job import training_ops
from macai.train.loop import train
from macai.train.loss import logits_for
from macai.train.memory import limited_memory

STEPS = 2  # the first step has no state of the optimiser beside a new one


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What two steps took.

    Attributes:
        part: What was computed at once.
        expected_bytes: Of one process, before the correction.
        measured_bytes: The most that MLX held.
        factor: What all that depends on a part's tokens is multiplied with since.
    """

    part: PartShape
    expected_bytes: int
    measured_bytes: int
    factor: float


def probe(recipe: Recipe, folder: Path, setup: Setup, part: PartShape) -> Probe:
    """Load the model, take two steps of random tokens in this process, and measure.

    Args:
        recipe: Of the run.
        folder: Of the model.
        setup: Of the run.
        part: The largest of a run; of a smaller one half of the rows at a time where it is not
            expected to fit.

    Raises:
        TrainingError: not even one row is expected to fit.
    """
    while expect_shapes(setup, [[part]], [], workers=1).fits is False:
        if part.rows == 1:
            raise TrainingError(
                "not even one row is expected to fit, so there is nothing to measure",
                hint="macai plan without --probe says what does",
            )
        part = replace(part, rows=part.rows // 2, learnt=part.learnt // 2)
    measured = _measured(recipe, folder, setup, part)
    expected = footprint(setup, part)
    share = expected.activations + expected.working + expected.head
    factor = (measured - expected.fixed) / share * MARGIN if share else 1.0
    return Probe(
        part=part,
        expected_bytes=expected.total,
        measured_bytes=measured,
        factor=max(0.5, factor),
    )


def _measured(recipe: Recipe, folder: Path, setup: Setup, part: PartShape) -> int:
    """Return the most that MLX holds in two steps of such a part."""
    model = load_network(folder)
    objective = objective_of(recipe)
    logits = logits_for(model)
    method_of(recipe, model, Identity("", "", "")).prepare(model)
    optimizer = optimizer_of(recipe, model)
    gradient = objective.gradient(model, logits)
    examples = _examples(
        part, logits(model, mx.zeros((1, 1), mx.int32), mx.zeros(1, mx.int32)).shape[-1]
    )
    units = part.rows // objective.answers or 1
    width = objective.answers * (part.prefix + part.width)
    make = partial(
        objective.batch, examples, Plan(tuple(range(units)), width), pad_id=0, prefix=part.prefix
    )
    mx.reset_peak_memory()
    with limited_memory(), training_ops(model, recompute=recipe.batch.recompute):
        reports = train(
            model,
            optimizer,
            [make] * STEPS,
            gradient=lambda made, seed: gradient([(0, made)], seed),
            rate=lambda step: recipe.optimizer.learning_rate,
            max_grad_norm=recipe.optimizer.max_grad_norm,
            seed=recipe.train.seed,
        )
        return max(report.peak_memory_bytes for report in reports)


def _examples(part: PartShape, vocabulary: int) -> Sequence[Example]:
    """Return rows that make such a part: what is learnt is at their ends."""
    rng = np.random.default_rng(0)
    length = part.prefix + part.width + 1
    begin = rng.integers(0, vocabulary, part.prefix, np.int32)
    learn = np.zeros(length, np.bool_)
    each = min(part.width, max(1, part.learnt // max(1, part.rows)))
    learn[length - each :] = True
    return [
        Example(
            ids=np.concatenate([begin, rng.integers(0, vocabulary, part.width + 1, np.int32)]),
            learn=learn,
            source="probe",
        )
        for _ in range(max(2, part.rows))
    ]
