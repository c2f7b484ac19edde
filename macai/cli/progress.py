"""What long work looks like on stderr: live bars in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from macai.train.events import Event, Started, Stopped, Validated, Validating
from macai.train.loop import Report

LINE_SECONDS = 10.0  # between two lines when stderr is no terminal


def console() -> Console:
    """Return a console on stderr; stdout carries results only."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def reporting() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (what, done, total) that shows a bar for each `what`."""
    out = console()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=out, disable=not out.is_terminal
    ) as bars:
        tasks: dict[str, TaskID] = {}
        printed: dict[str, float] = {}

        def report(what: str, done: int, total: int) -> None:
            if out.is_terminal:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total)
                bars.update(tasks[what], completed=done, total=total)
            elif (
                done >= total or time.monotonic() - printed.get(what, -LINE_SECONDS) >= LINE_SECONDS
            ):
                printed[what] = time.monotonic()
                print(f"{what}: {done} of {total}", file=sys.stderr)

        yield report


def training_bars(out: Console) -> Progress:
    """Return the bar of a run: steps done, what the task's "facts" say, and the time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[facts]}", markup=False),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=out,
        disable=not out.is_terminal,
    )


class TrainingView:
    """Shows the events of a run: one bar with step, loss, speed, memory and time left."""

    def __init__(self) -> None:
        self.console = console()
        self.bars = training_bars(self.console)
        self.task: TaskID | None = None
        self.started: Started | None = None
        self.seconds = 0.0
        self.steps_seen = 0
        self.tokens = 0
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

    def show(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Report):
            self._step(event)
        elif isinstance(event, Validating):
            self._update(description=f"validating {event.done}/{event.total}")
        elif isinstance(event, Validated):
            kept = ", the best so far: adapter saved" if event.best else ""
            self.console.print(f"step {event.step}: validation loss {event.loss:.4f}{kept}")
            self._update(description="training")
        elif not isinstance(event, Stopped):
            self.console.print(
                f"done: {event.steps} steps in {event.seconds:.0f} s, "
                f"{event.tokens_per_second:.0f} tokens/s, "
                f"best validation loss {event.best_valid_loss:.4f}"
            )

    def _start(self, event: Started) -> None:
        self.started = event
        out = [f"{event.train_rows} rows to learn from, {event.valid_rows} to check with"]
        if event.dropped_rows or event.shortened_rows:
            out.append(f"over max_length: {event.dropped_rows} dropped, {event.shortened_rows} cut")
        out.append(f"{event.trainable_parameters / 1e6:.1f} M parameters to train")
        out.append(f"{event.real_share:.0%} of a step's tokens are real")
        if event.workers > 1:
            out.append(f"{event.workers} processes share each step")
        if event.shared_prefix:
            out.append(f"all rows begin with the same {event.shared_prefix}, computed once a batch")
        self.console.print("; ".join(out))
        if event.first_step:
            done = (
                ", the last one: nothing is left to do" if event.first_step == event.steps else ""
            )
            self.console.print(f"resumed at step {event.first_step}{done}")
        self.task = self.bars.add_task(
            "training", total=event.steps, completed=event.first_step, facts=""
        )

    def _step(self, report: Report) -> None:
        assert self.started is not None
        self.seconds += report.seconds
        self.tokens += report.real_tokens
        self.steps_seen += 1
        facts = (
            f"loss {report.loss:.3f}  {self.tokens / self.seconds:.0f} tokens/s  "
            f"{report.peak_memory_bytes / 1e9:.1f} GB"
        )
        self._update(completed=report.step, facts=facts)
        last = report.step == self.started.steps
        due = time.monotonic() - self.printed >= LINE_SECONDS or self.steps_seen == 1 or last
        if not self.console.is_terminal and due:
            self.printed = time.monotonic()
            left = (self.started.steps - report.step) * self.seconds / self.steps_seen
            self.console.print(
                f"step {report.step}/{self.started.steps}  {facts}  {left:.0f} s left"
            )

    def _update(self, **fields: Any) -> None:
        if self.task is not None:
            self.bars.update(self.task, **fields)
