"""`macai plan`: the memory of a run and what fits this machine, without loading a weight."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.nn as nn

from macai.data.store import Joined
from macai.finetune.expected import Expectation, Rows, expect, expect_shapes, room, setup_of
from macai.finetune.probe import Probe, probe
from macai.finetune.rows import prepared_rows
from macai.finetune.wanted import (
    method_of,
    micro_tokens_of,
    objective_of,
    optimizer_of,
    prefix_of,
    steps_of,
)
from macai.models.identity import Identity
from macai.models.load import load_tokenized, read_config
from macai.models.prefix import remembers_keys
from macai.models.sizes import open_hollow
from macai.recipe import Recipe
from macai.train.footprint import PartShape, Setup
from macai.train.machine import total_bytes, workers_for
from macai.train.objective import Objective

WIDTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Lengths of rows that a plan tries."""
LEAST_TOKENS = 64  # at once: with fewer, a step is slow whatever its memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What fits with rows of a length.

    Attributes:
        width: Tokens of a row.
        recompute: See `batch.recompute`.
        rows: At once, in each process; 0 where not even one fits.
        memory_bytes: Of MLX, with so many, or with one.
    """

    width: int
    recompute: bool
    rows: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What is expected of a run, under the names `macai plan --json` prints.

    Attributes:
        expected: Of the run as it is asked for.
        micro_tokens: Tokens computed at once, as asked for.
        recompute: As asked for.
        changes: Settings with which the run fits, as `--set` takes them: none if it does as it is,
            None if there are no such.
        options: What fits, by length of rows.
        total_bytes: Memory of the machine; 0 where it does not say.
        probe: None unless it was asked for.
    """

    expected: Expectation
    micro_tokens: int
    recompute: bool
    changes: tuple[str, ...] | None
    options: tuple[Option, ...]
    total_bytes: int
    probe: Probe | None

    def to_json(self) -> dict[str, Any]:
        """Return it in what JSON can hold."""
        values = asdict(self)
        values["expected"]["terms"] = values["expected"].pop("footprint")
        values["expected"] |= {
            "memory_bytes": self.expected.footprint.total,
            "process_bytes": self.expected.process_bytes,
            "fits": self.expected.fits,
        }
        return values


@dataclass(slots=True, kw_only=True)
class _Planner:
    """Tells what a recipe's run would hold, and those of its variants."""

    setup: Setup
    objective: Objective
    workers: int
    rows: Rows | None

    def __call__(self, recipe: Recipe) -> Expectation:
        setup = replace(self.setup, recompute=recipe.batch.recompute)
        if self.rows is not None:
            return expect(recipe, setup, self.objective, self.rows, workers=self.workers)
        parts = _full_parts(recipe, self.workers)
        return expect_shapes(setup, [parts], [], workers=self.workers)


def plan(
    recipe: Recipe, folder: Path, data: Path | None = None, *, probing: bool = False
) -> MemoryPlan:
    """Return what a run of a recipe would need.

    Args:
        recipe: Its `model` and `data.path` are not read.
        folder: Of the model.
        data: As `macai.finetune.finetune` takes it; None: all rows have `data.max_length` tokens,
            all of them learnt.
        probing: Load the model after all, take two steps, and correct what is told by them.

    Raises:
        DataError, ModelError, TrainingError, UsageError: as a run would.
    """
    config = read_config(folder)
    model = open_hollow(folder)
    objective = objective_of(recipe)
    workers = workers_for(model, recipe.train.workers)
    rows = None if data is None else _rows(recipe, folder, data, objective, model, workers)
    # Where an adapter starts makes no difference here, and to find it takes weights.
    started = replace(recipe, adapter=replace(recipe.adapter, init="default", original=None))
    method_of(started, model, Identity("", "", "")).prepare(model)
    setup = setup_of(recipe, model, config, optimizer_of(recipe, model))
    planner = _Planner(setup=setup, objective=objective, workers=workers, rows=rows)
    expected, found = planner(recipe), None
    if probing:
        found = probe(recipe, folder, setup, expected.part)
        planner.setup = replace(setup, factor=found.factor)
        expected = planner(recipe)
    return MemoryPlan(
        expected=expected,
        micro_tokens=micro_tokens_of(recipe),
        recompute=recipe.batch.recompute,
        changes=_changes(recipe, planner, expected),
        options=tuple(_options(recipe, planner, config, expected)),
        total_bytes=total_bytes(),
        probe=found,
    )


def _rows(
    recipe: Recipe,
    folder: Path,
    data: Path,
    objective: Objective,
    model: nn.Module,
    workers: int,
) -> Rows:
    """Return the rows as a run would have them; only their sizes are kept."""
    opened = load_tokenized(folder)
    with (
        TemporaryDirectory(prefix="macai-") as scratch,
        prepared_rows(recipe, objective, opened, data, scratch=Path(scratch)) as made,
    ):
        *learnt, valid = (prepared.examples for prepared in made)
        train = Joined(learnt)
        sizes = Rows.of(objective, train, valid)
        micro = micro_tokens_of(recipe)
        steps = steps_of(
            recipe, sizes.lengths, sizes.sets, epoch=0, workers=workers, micro_tokens=micro
        )
        parts = sum(len(step) for step in steps)
        units, examples = len(sizes.lengths), chain(train, valid)
        prefix = prefix_of(recipe, units, examples, parts, lambda: remembers_keys(model))
    return replace(sizes, prefix=prefix)


def _full_parts(recipe: Recipe, workers: int) -> list[PartShape]:
    """Return the parts of a step of rows that are as long as rows may be, learnt whole."""
    tokens, micro = recipe.batch.tokens, micro_tokens_of(recipe)
    width = recipe.data.max_length - 1  # the last token of a row predicts nothing
    rows = max(1, min(micro, tokens) // width)
    each = -(-rows // workers)
    part = PartShape(rows=each, width=width, learnt=each * width)
    return [part] * (workers * max(1, -(-(tokens // width) // rows)))


def _changes(recipe: Recipe, planner: _Planner, expected: Expectation) -> tuple[str, ...] | None:
    """Return the settings that fit and cost least time: smaller parts first, then recomputing."""
    if expected.fits is not False:
        return ()
    batch = recipe.batch
    for recompute in dict.fromkeys((batch.recompute, True)):
        tokens = micro_tokens_of(recipe)
        while tokens >= LEAST_TOKENS:
            changed = replace(batch, recompute=recompute, micro_tokens=tokens)
            if planner(replace(recipe, batch=changed)).fits:
                made = [f"batch.micro_tokens={tokens}"] * (tokens != micro_tokens_of(recipe))
                return (*made, *(["batch.recompute=true"] if recompute != batch.recompute else []))
            tokens //= 2
    return None


def _options(
    recipe: Recipe, planner: _Planner, config: dict[str, Any], expected: Expectation
) -> Iterator[Option]:
    """Yield what fits, for lengths that the model knows, without and with recomputing."""
    known = int(config.get("text_config", config).get("max_position_embeddings") or WIDTHS[-1])
    share = expected.part.learnt / max(1, expected.part.tokens)
    free = room()
    for width in (width for width in WIDTHS if width <= known):
        for recompute in (False, True):
            setup = replace(planner.setup, recompute=recompute)
            rows = max(1, micro_tokens_of(recipe) // width)
            while True:
                held = _held(setup, rows, width, share, planner.workers)
                fits = not free or held.process_bytes <= free
                if fits or rows == 1:
                    break
                rows //= 2
            yield Option(
                width=width,
                recompute=recompute,
                rows=rows if fits else 0,
                memory_bytes=held.footprint.total,
            )


def _held(setup: Setup, rows: int, width: int, share: float, workers: int) -> Expectation:
    part = PartShape(rows=rows, width=width, learnt=round(share * rows * width))
    return expect_shapes(setup, [[part] * workers], [], workers=workers)
