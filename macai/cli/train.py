"""`macai train`: a recipe, a model and data in, an adapter out."""

import json
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.cli.signals import stop_on_signal

if TYPE_CHECKING:
    from macai.recipe import Recipe
    from macai.train.events import Summary


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
    """Tune a model on your examples: a language model, or Stable Diffusion on pictures.

    The recipe's kind says which. Ctrl-C stops after the step at hand and saves; --resume goes on
    from there, and the result is the same as that of a run that was never stopped.

    Example: macai train lora --model smollm2-135m --data examples.jsonl --out runs/mine

    Example: macai train sd-lora --model stable-diffusion --data pictures --out runs/style
    """
    from macai.catalog import find_recipe
    from macai.cli.train_images import run_image_recipe, show_result
    from macai.recipe import Recipe, load_any_recipe

    if resume and force:
        raise typer.BadParameter("--resume goes on with a run, and --force replaces it: give one")
    changes = list(override or [])
    if model is not None:
        changes.append(f"model={json.dumps(model)}")
    loaded = load_any_recipe(find_recipe(recipe), changes)
    options: dict[str, Any] = {"data": data, "out": out, "resume": resume, "force": force}
    if isinstance(loaded, Recipe):
        summary = run_recipe(loaded, **options)
        values, result = asdict(summary), f"adapter: {summary.adapter}"
    else:
        pictured = run_image_recipe(loaded, **options)
        values, result = asdict(pictured), show_result(pictured)
    print(json.dumps(values) if as_json else result)


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
    from macai.train.unsaved import remove_unsaved, removing_unsaved

    data = data or recipe.data.path
    if data is None:
        raise UsageError("no data to learn from", hint="give --data examples.jsonl, or a folder")
    if not resume:  # before minutes go into fetching a model
        remove_unsaved(out)
        refuse_existing(out, force=force)
    with reporting() as progress:
        folder = locate_model(recipe.model, progress=progress)
    loaded = load_model(folder)
    with (
        stop_on_signal(partial(remove_unsaved, out)) as stop_requested,
        removing_unsaved(out),
        TrainingView() as view,
    ):
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
