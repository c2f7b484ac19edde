"""`macai train` for recipes of kind "diffusion": pictures in, a LoRA or a model out."""

import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import typer

from macai.cli.progress import LINE_SECONDS, console, training_bars
from macai.cli.signals import stop_on_signal

if TYPE_CHECKING:
    from macai.finetune_diffusion.events import Event, Started, Summary
    from macai.recipe import DiffusionRecipe
    from macai.train.loop import Report


def run_image_recipe(
    recipe: "DiffusionRecipe", *, data: Path | None, out: Path, resume: bool, force: bool
) -> "Summary":
    """Run a recipe with a live view on stderr; a stopped run exits with 130 (Ctrl-C) or 143."""
    from macai.catalog import locate_pipeline
    from macai.errors import UsageError
    from macai.files import refuse_existing
    from macai.finetune_diffusion import finetune_diffusion
    from macai.finetune_diffusion.events import Summary
    from macai.train.events import Stopped
    from macai.train.unsaved import remove_unsaved, removing_unsaved

    data = data or recipe.data.path
    if data is None:
        raise UsageError("no pictures to learn from", hint="give --data and a folder of them")
    if not resume:  # before minutes go into fetching a model
        remove_unsaved(out)
        refuse_existing(out, force=force)
    model = locate_pipeline(recipe.model)
    with (
        stop_on_signal(partial(remove_unsaved, out)) as stop_requested,
        removing_unsaved(out),
        ImageTrainingView() as view,
    ):
        for event in finetune_diffusion(
            recipe,
            model,
            data=data,
            out=out,
            resume=resume,
            force=force,
            should_stop=lambda: stop_requested() is not None,
        ):
            view.show(event)
    if isinstance(event, Stopped):
        number = stop_requested() or signal.SIGINT
        print(
            f"stopped after step {event.step}; go on with the same command and --resume",
            file=sys.stderr,
        )
        raise typer.Exit(128 + number)
    assert isinstance(event, Summary)
    return event


def show_result(summary: "Summary") -> str:
    """Return the line that says where the result is."""
    return f"model: {summary.model}" if summary.model else f"adapter: {summary.adapter}"


class ImageTrainingView:
    """Shows the events of a run: one bar with step, loss, speed, memory and time left."""

    def __init__(self) -> None:
        self.console = console()
        self.bars = training_bars(self.console)
        self.task = self.bars.add_task("preparing", total=None, facts="", visible=False)
        self.steps = 0
        self.seconds = 0.0
        self.images = 0
        self.seen = 0
        self.printed = time.monotonic()

    def __enter__(self) -> "ImageTrainingView":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def show(self, event: "Event") -> None:
        """Show one event."""
        from macai.finetune_diffusion.events import Preparing, Sampled, Started, Summary
        from macai.train.events import Validated, Validating
        from macai.train.loop import Report

        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Preparing):
            self._prepare(event.done, event.total)
        elif isinstance(event, Report):
            self._step(event)
        elif isinstance(event, Validating):
            self.bars.update(self.task, description=f"validating {event.done}/{event.total}")
        elif isinstance(event, Validated):
            kept = ", the best so far: kept" if event.best else ""
            self.console.print(f"step {event.step}: validation loss {event.loss:.4f}{kept}")
            self.bars.update(self.task, description="training")
        elif isinstance(event, Sampled):
            self.console.print(f"step {event.step}: {event.file}", soft_wrap=True)
        elif isinstance(event, Summary):
            self.console.print(
                f"done: {event.steps} steps in {event.seconds:.0f} s, "
                f"{event.images_per_second:.2f} pictures/s"
            )

    def _start(self, event: "Started") -> None:
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
        if event.workers > 1:
            out.append(f"{event.workers} processes share each step")
        self.console.print("; ".join(out))
        if event.first_step:
            done = (
                ", the last one: nothing is left to do" if event.first_step == event.steps else ""
            )
            self.console.print(f"resumed at step {event.first_step}{done}")
        self.steps = event.steps
        self.bars.update(self.task, total=event.steps, completed=event.first_step, visible=True)

    def _prepare(self, done: int, total: int) -> None:
        self.bars.update(self.task, description=f"encoding pictures {done}/{total}")
        if not self.console.is_terminal and (done == total or self._due()):
            self.console.print(f"encoding pictures: {done} of {total}")

    def _step(self, report: "Report") -> None:
        self.seconds += report.seconds
        self.images += report.real_tokens
        self.seen += 1
        facts = (
            f"loss {report.loss:.4f}  {self.images / self.seconds:.2f} pictures/s  "
            f"{report.peak_memory_bytes / 1e9:.1f} GB"
        )
        self.bars.update(self.task, completed=report.step, description="training", facts=facts)
        last = report.step == self.steps
        if not self.console.is_terminal and (self.seen == 1 or last or self._due()):
            left = (self.steps - report.step) * self.seconds / self.seen
            self.console.print(f"step {report.step}/{self.steps}  {facts}  {left:.0f} s left")

    def _due(self) -> bool:
        """Return whether it is time for another line, where stderr is no terminal."""
        if time.monotonic() - self.printed < LINE_SECONDS:
            return False
        self.printed = time.monotonic()
        return True
