"""What runs of every kind have in common: their folder, and what comes between their steps."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from macai.errors import TrainingError
from macai.files import atomic_file, explained
from macai.train.checkpoint import FILE, Checkpoint, restore
from macai.train.events import Stopped
from macai.train.loop import Report
from macai.train.metrics import METRICS, forget_after, log
from macai.train.progress import Progress

RECIPE = "recipe.toml"

Event = TypeVar("Event")
Log = Callable[[dict[str, Any]], None]
"""Adds a line to metrics.jsonl."""


def follow(
    reports: Iterable[Report],
    out: Path,
    progress: Progress,
    *,
    last: int,
    eval_every: int,
    save_every: int,
    measured: Callable[[Report], dict[str, Any]],
    validate: Callable[[Log], Iterator[Event]],
    save: Callable[[], None],
    should_stop: Callable[[], bool],
    sample: Callable[[Log], Event] | None = None,
    sample_every: int = 0,
) -> Generator[Report | Event | Stopped, None, bool]:
    """Take the steps of a run; count, log, validate, sample and save as they go by.

    After the last step all of that is done. A run that is asked to stop saves, and yields Stopped.

    Args:
        reports: Of `macai.train.loop.train`.
        out: The run's folder.
        progress: Gets what each step did.
        last: The number of the last step.
        eval_every: Steps between two validations; 0 is after the last only.
        save_every: Steps between two checkpoints; 0 is with the validations only.
        measured: What metrics.jsonl says of a step.
        validate: Yields what happens in a validation.
        save: Writes the checkpoint.
        should_stop: Asked after every step.
        sample: Makes samples.
        sample_every: Steps between two; 0 is never.

    Returns:
        Whether the last step was taken.
    """
    with (out / METRICS).open("a", encoding="utf-8") as file:

        def note(values: dict[str, Any]) -> None:
            log(file, values)

        for report in reports:
            progress.count(report)
            note(measured(report))
            yield report
            done, final = report.step, report.step == last
            if validated := final or _due(done, eval_every):
                yield from validate(note)
            if sample is not None and sample_every and (final or _due(done, sample_every)):
                yield sample(note)
            stop = not final and should_stop()
            if validated or stop or _due(done, save_every):
                save()
            if stop:
                yield Stopped(step=done)
                return False
    return True


def require_finite(loss: float, step: int) -> None:
    """Raise TrainingError if a validation loss is no number."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"step {step}: the validation loss is {loss}",
            hint="lower optimizer.learning_rate; the last checkpoint is intact",
        )


def begin(out: Path, recipe: str, *, files: Sequence[str], folders: Sequence[str] = ()) -> None:
    """Make the folder of a run, take away what an earlier one left, and write recipe.toml.

    Args:
        out: The folder.
        recipe: TOML.
        files: That a run may leave, besides checkpoint and metrics.
        folders: That a run may leave.
    """
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in (FILE, METRICS, *files):
            (out / name).unlink(missing_ok=True)
        for name in folders:
            shutil.rmtree(out / name, ignore_errors=True)
        _remove_partial(out)
    with atomic_file(out / RECIPE) as temporary:
        temporary.write_text(recipe, encoding="utf-8")
    mx.reset_peak_memory()


def go_on(
    out: Path,
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: optim.Optimizer,
    *,
    fingerprint: Mapping[str, str],
    changes: Callable[[], Sequence[str]],
) -> None:
    """Go back to the last checkpoint of a run: its arrays and its metrics.

    Args:
        out: The folder.
        checkpoint: Its.
        model: Gets the trained weights.
        optimizer: Gets its state.
        fingerprint: Hashes of all that decides the result, by what they are of.
        changes: Says in which keys the recipes differ.

    Raises:
        TrainingError: the checkpoint is of another run.
    """
    saved = checkpoint.state["run"]
    if different := [what for what, value in fingerprint.items() if saved.get(what) != value]:
        problem = f"{out}: its run had another {' and '.join(different)}"
        raise TrainingError(
            "\n  ".join([problem, *changes()]),
            hint="resume with all it was started with, or start anew with --force instead",
        )
    restore(checkpoint, model, optimizer)
    _remove_partial(out)
    forget_after(out / METRICS, checkpoint.state["progress"]["step"])


def digest(values: Mapping[str, Any]) -> str:
    """Return a hash of the values of a recipe that decide its result, 64 hex digits."""
    numbers = json.loads(json.dumps(values), parse_int=float)  # 2 epochs are 2.0 epochs
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _remove_partial(out: Path) -> None:
    """Take away what a killed run was writing, which can be as large as a checkpoint."""
    for path in out.glob(".*.partial*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
