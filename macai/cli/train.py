"""`macai train`: a recipe, a model and data in, an adapter out."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from macai.recipe import Recipe
    from macai.train.events import Summary

SHOW_CURSOR = b"\x1b[?25h"  # which a live bar hides


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe by name or a .toml file.")] = "lora",
    model: Annotated[
        str | None, typer.Option(help="A catalogue name, a folder, a .gguf file or a hub id.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder with train.jsonl and valid.jsonl, or one .jsonl.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the adapter.")] = Path("runs/adapter"),
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: train.epochs=1."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Tune a model with LoRA on your examples.

    Ctrl-C stops after the step at hand and saves; --resume goes on from there, and the result is
    the same as that of a run that was never stopped.

    Example: macai train lora --model smollm2-135m --data examples.jsonl --out runs/mine
    """
    from macai.catalog import find_recipe
    from macai.recipe import load_recipe

    if resume and force:
        raise typer.BadParameter("--resume goes on with a run, and --force replaces it: give one")
    changes = list(override or [])
    if model is not None:
        changes.append(f"model={json.dumps(model)}")
    summary = run_recipe(
        load_recipe(find_recipe(recipe), changes), data=data, out=out, resume=resume, force=force
    )
    if as_json:
        from dataclasses import asdict

        print(json.dumps(asdict(summary)))
    else:
        print(f"adapter: {summary.adapter}")


def run_recipe(
    recipe: "Recipe", *, data: Path | None, out: Path, resume: bool = False, force: bool = False
) -> "Summary":
    """Run a recipe with a live view on stderr; a stopped run exits with 130 (Ctrl-C) or 143."""
    from macai.catalog import locate_model
    from macai.cli.progress import TrainingView, reporting
    from macai.errors import UsageError
    from macai.files import refuse_existing
    from macai.finetune import finetune
    from macai.models.load import load_model
    from macai.train.events import Stopped, Summary

    data = data or recipe.data.path
    if data is None:
        raise UsageError("no data to learn from", hint="give --data examples.jsonl, or a folder")
    if not resume:  # before minutes go into fetching a model
        refuse_existing(out, force=force)
    with reporting() as progress:
        folder = locate_model(recipe.model, progress=progress)
    loaded = load_model(folder)
    with stop_on_signal() as stop_requested, TrainingView() as view:
        events = finetune(
            recipe,
            loaded,
            data=data,
            out=out,
            resume=resume,
            force=force,
            should_stop=lambda: stop_requested() is not None,
        )
        for event in events:
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


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], int | None]]:
    """Turn the first Ctrl-C or SIGTERM into a request, which the function yielded returns.

    A second one ends the process at once, where an exception would wait for what is being
    computed: what is on disk is whole all the same.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        # Not print: the signal may have come in the middle of one, which Python refuses.
        if received:
            os.write(2, SHOW_CURSOR if os.isatty(2) else b"")
            os._exit(128 + number)
        received.append(number)
        os.write(2, b"stopping after this step; once more to stop at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
