"""Other programs that show a run while it goes on, where they are installed: `train.log`."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from macai.errors import UsageError
from macai.finetune_diffusion import events as of_pictures
from macai.report.writers.tensorboard import TensorBoard
from macai.report.writers.wandb import WeightsAndBiases
from macai.report.writers.writer import Opening, Writer
from macai.train import events as of_texts
from macai.train.loop import Report

Event = TypeVar("Event")

WRITERS: Mapping[str, Callable[[Opening], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def require_writers(names: Sequence[str]) -> None:
    """Raise UsageError for writers whose package is not installed: all of them at once."""
    missing = [name for name in names if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        packages = " and ".join(PACKAGES[name] for name in missing)
        raise UsageError(
            f"train.log needs {packages}, not installed here",
            hint=f"pip install 'macai[{','.join(missing)}]', or leave it out of train.log",
        )


def logged(
    events: Iterable[Event],
    names: Sequence[str],
    *,
    out: Path,
    recipe: Mapping[str, object],
    unit: str,
) -> Iterator[Event]:
    """Yield the events of a run and give each writer what they say.

    Args:
        events: Of `macai.finetune` or `macai.finetune_diffusion`.
        names: Of `WRITERS`.
        out: The run's folder, in which the writers have folders of their own.
        recipe: Said to be the configuration; `macai.report.page.public` of it.
        unit: What a step's `real_tokens` are: tokens, or pictures.
    """
    writers: list[Writer] = []
    try:
        for event in events:
            if isinstance(event, of_texts.Started | of_pictures.Started):
                opening = Opening(out, recipe, event.first_step)
                writers += [WRITERS[name](opening) for name in dict.fromkeys(names)]
            for writer in writers:
                _tell(writer, event, unit)
            yield event
    finally:
        for writer in writers:
            writer.close()


def _tell(writer: Writer, event: object, unit: str) -> None:
    if isinstance(event, Report):
        writer.numbers(event.step, _numbers(event, unit))
    elif isinstance(event, of_texts.Validated):
        writer.numbers(event.step, {"valid/loss": event.loss})
    elif isinstance(event, of_pictures.Sampled):
        writer.picture(event.step, "samples", Path(event.file))


def _numbers(report: Report, unit: str) -> dict[str, float]:
    return {
        "train/loss": report.loss,
        "train/learning_rate": report.learning_rate,
        "train/grad_norm": report.grad_norm,
        f"speed/{unit}_per_second": report.real_tokens / report.seconds,
        f"speed/computed_{unit}_per_second": report.processed_tokens / report.seconds,
        "memory/peak_bytes": report.peak_memory_bytes,
        **{f"rewards/{name}": value for name, value in report.rewards.items()},
    }
