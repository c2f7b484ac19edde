"""What a training run looks like on stderr: a bar with step, loss, speed, memory and time left."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, ClassVar

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from macai.cli.progress import LINE_SECONDS, console
from macai.finetune_diffusion import events as of_pictures
from macai.train import events as of_texts
from macai.train.events import Validated, Validating
from macai.train.loop import Report

WORSE = 1.0
"""By how much the best validation loss is above the first step's when a run has failed, nats."""


class TrainingView(ABC):
    """Shows the events of a run; a subclass knows what a kind of run says of itself.

    Attributes:
        unit: What is learnt from, and counted: a step's `real_tokens`.
        digits: Of a loss after the point.
        speed: Digits of the speed after the point.
    """

    unit: ClassVar[str]
    digits: ClassVar[int]
    speed: ClassVar[int]

    def __init__(self) -> None:
        self.console = console()
        self.bars = _Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bars.add_task("preparing", total=1, visible=False)
        self.steps = 0
        self.seconds = 0.0
        self.units = 0
        self.computed = 0
        self.valid: float | None = None
        self.first: float | None = None
        self.seen = 0
        self.printed = time.monotonic()

    def __enter__(self) -> "TrainingView":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def show(self, event: Any) -> None:
        """Show one event."""
        if isinstance(event, Report):
            self._step(event)
        elif isinstance(event, Validating):
            self.bars.update(self.task, description=f"validating {event.done}/{event.total}")
        elif isinstance(event, Validated):
            self.valid = event.loss
            kept = ", the best so far: kept" if event.best else ""
            self.console.print(f"step {event.step}: validation loss {event.loss:.4f}{kept}")
            self.bars.update(self.task, description="training")
        else:
            self.show_own(event)

    @abstractmethod
    def show_own(self, event: Any) -> None:
        """Show an event of this kind of run."""

    def begin(self, facts: list[str], *, workers: int, steps: int, first_step: int) -> None:
        """Say what is about to be trained, and show the bar."""
        if workers > 1:
            facts = [*facts, f"{workers} processes share each step"]
        self.console.print("; ".join(facts))
        if first_step:
            done = ", the last one: nothing is left to do" if first_step == steps else ""
            self.console.print(f"resumed at step {first_step}{done}")
        self.steps = steps
        self.bars.update(
            self.task, description="training", total=steps, completed=first_step, visible=True
        )

    def due(self) -> bool:
        """Return whether it is time for another line, where stderr is no terminal."""
        if self.console.is_terminal or time.monotonic() - self.printed < LINE_SECONDS:
            return False
        self.printed = time.monotonic()
        return True

    def line(self, text: str) -> None:
        """Print a line where stderr is no terminal, which has the bar for it."""
        if not self.console.is_terminal:
            self.printed = time.monotonic()
            self.console.print(text)

    def _step(self, report: Report) -> None:
        if report.step == 1:
            self.first = report.loss
        self.seconds += report.seconds
        self.units += report.real_tokens
        self.computed += report.processed_tokens
        self.seen += 1
        facts = "  ".join(self._facts(report))
        self.bars.facts = facts
        self.bars.update(self.task, completed=report.step, description="training")
        if self.seen == 1 or report.step == self.steps or self.due():
            left = (self.steps - report.step) * self.seconds / self.seen
            self.line(f"step {report.step}/{self.steps}  {facts}  {left:.0f} s left")

    def _facts(self, report: Report) -> Iterator[str]:
        """Yield what is said of a step; speeds are of all steps so far."""
        valid = "" if self.valid is None else f" ({self.valid:.{self.digits}f} validated)"
        yield f"loss {report.loss:.{self.digits}f}{valid}"
        if "margin" in report.rewards:
            yield f"margin {report.rewards['margin']:.3f}"
        if "accuracy" in report.rewards:
            yield f"right {report.rewards['accuracy']:.0%}"
        yield f"rate {report.learning_rate:.1e}"
        yield f"gradient {report.grad_norm:.3g}"
        rate, computed = (n / self.seconds for n in (self.units, self.computed))
        yield f"{rate:.{self.speed}f} {self.unit}/s of {computed:.{self.speed}f} computed"
        yield f"{report.peak_memory_bytes / 1e9:.1f} GB"


class _Bars(Progress):
    """A bar, and what is said of the last step under it."""

    facts = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is drawn."""
        yield self.make_tasks_table(self.tasks)
        if self.facts:
            yield Text(self.facts, "dim")


class TextTrainingView(TrainingView):
    """Of a language model."""

    unit = "tokens"
    digits = 3
    speed = 0

    def show_own(self, event: Any) -> None:
        """Show what only such a run says."""
        if isinstance(event, of_texts.Started):
            self._start(event)
        elif isinstance(event, of_texts.Lowered):
            self._lowered(event)
        elif isinstance(event, of_texts.Summary):
            self.console.print(
                f"done: {event.steps} steps in {event.seconds:.0f} s, "
                f"{event.tokens_per_second:.0f} tokens/s, "
                f"best validation loss {event.best_valid_loss:.4f}"
            )
            self._warn_of_loss(event.best_valid_loss)

    def _warn_of_loss(self, best: float) -> None:
        """Say so if the best validation loss is far above what the first step began with."""
        if self.first is not None and best > self.first + WORSE:
            self.console.print(
                f"warning: the first step's loss was {self.first:.{self.digits}f}: "
                "this run made the model worse; lower optimizer.learning_rate"
            )

    def _start(self, event: of_texts.Started) -> None:
        out = [f"{event.train_rows} rows to learn from, {event.valid_rows} to check with"]
        if event.dropped_rows or event.shortened_rows:
            out.append(f"over max_length: {event.dropped_rows} dropped, {event.shortened_rows} cut")
        out.append(f"{event.trainable_parameters / 1e6:.1f} M parameters to train")
        out.append(f"{event.real_share:.0%} of a step's tokens are real")
        if event.shared_prefix:
            out.append(f"all rows begin with the same {event.shared_prefix}, computed once a batch")
        free = event.available_memory_bytes
        there = f" of the {free / 1e9:.1f} GB there are" if free else ""
        out.append(f"expected to take {event.expected_memory_bytes / 1e9:.1f} GB{there}")
        self.begin(out, workers=event.workers, steps=event.steps, first_step=event.first_step)

    def _lowered(self, event: of_texts.Lowered) -> None:
        begin = f"after step {event.first_step}" if event.first_step else "from the beginning"
        self.console.print(
            f"step {event.step}: {event.why}; again {begin}, with at most {event.micro_tokens} "
            "tokens at once: the same steps, in more parts"
        )
        self.bars.update(self.task, completed=event.first_step)


class PictureTrainingView(TrainingView):
    """Of Stable Diffusion."""

    unit = "pictures"
    digits = 4
    speed = 2

    def show_own(self, event: Any) -> None:
        """Show what only such a run says."""
        if isinstance(event, of_pictures.Started):
            self._start(event)
        elif isinstance(event, of_pictures.Preparing):
            what = f"encoding pictures: {event.done} of {event.total}"
            self.bars.update(self.task, description=what)
            if event.done == event.total or self.due():
                self.line(what)
        elif isinstance(event, of_pictures.Sampled):
            self.console.print(f"step {event.step}: {event.file}")
        elif isinstance(event, of_pictures.Summary):
            best = event.best_valid_loss
            self.console.print(
                f"done: {event.steps} steps in {event.seconds:.0f} s, "
                f"{event.images_per_second:.2f} pictures/s"
                + ("" if best is None else f", best validation loss {best:.4f}")
            )

    def _start(self, event: of_pictures.Started) -> None:
        out = [f"{event.train_images} pictures to learn from, {event.valid_images} to check with"]
        if event.class_images:
            out.append(f"{event.class_images} of the class")
        sizes = sorted(event.sizes.items(), key=lambda item: -item[1])
        out.append(", ".join(f"{count} of {size}" for size, count in sizes))
        if event.enlarged:
            out.append(f"{event.enlarged} of them enlarged")
        if event.cut_captions:
            out.append(f"{event.cut_captions} captions are too long and cut")
        if event.random:
            out.append(f"random weights: {', '.join(event.random)}")
        out.append(f"{event.trainable_parameters / 1e6:.1f} M parameters to train")
        self.begin(out, workers=event.workers, steps=event.steps, first_step=event.first_step)
