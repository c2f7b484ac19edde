"""`macai train`: a recipe, a model and data in, an adapter out."""

import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from macai.cli.signals import stop_on_signal

if TYPE_CHECKING:
    from macai.cli.training_view import TrainingView
    from macai.finetune_diffusion.events import Summary as ImageSummary
    from macai.recipe import DiffusionRecipe, Recipe
    from macai.report.answers import Questions
    from macai.train.events import Summary
    from macai.train.group import Group

Result = TypeVar("Result")


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe by name or a .toml file.")] = "lora",
    model: Annotated[
        str | None,
        typer.Option(
            help="A catalogue name, a folder, a .gguf file or a hub id; for pictures as in image. "
            "Default: the recipe's."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder with train.jsonl and valid.jsonl, one file, or hub:owner/name; a folder "
            "of pictures."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the result.")] = Path("runs/adapter"),
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
    from macai.errors import UsageError
    from macai.recipe import Recipe
    from macai.train.group import launched

    if resume and force:
        raise typer.BadParameter("--resume goes on with a run, and --force replaces it: give one")
    loaded = changed_recipe(recipe, model, override)
    options: dict[str, Any] = {"data": data, "out": out, "resume": resume, "force": force}
    group = launched()
    if isinstance(loaded, Recipe):
        summary = run_recipe(loaded, **options, group=group)
        values, result = asdict(summary), _result(summary)
    else:
        if group is not None:
            raise UsageError(
                "runs on pictures are not shared between processes that mlx.launch starts"
            )
        pictured = run_image_recipe(loaded, **options)
        values, result = asdict(pictured), _result(pictured)
    print(json.dumps(values) if as_json else result)


def changed_recipe(
    name: str, model: str | None, override: list[str] | None
) -> "Recipe | DiffusionRecipe":
    """Return a recipe with the changes of the command line."""
    from macai.catalog import find_recipe
    from macai.recipe import load_any_recipe

    changes = list(override or [])
    if model is not None:
        changes.append(f"model={json.dumps(model)}")
    return load_any_recipe(find_recipe(name), changes)


def run_recipe(
    recipe: "Recipe",
    *,
    data: Path | None,
    out: Path,
    resume: bool = False,
    force: bool = False,
    group: "Group | None" = None,
) -> "Summary":
    """Tune a language model with a live view on stderr; a stopped run exits with 130 or 143.

    In a group of processes only the first one shows and writes anything; the others exit.
    """
    from macai.catalog import locate_model
    from macai.cli.progress import reporting
    from macai.cli.training_view import TextTrainingView
    from macai.data.rows import read_learnt, read_splits
    from macai.finetune import finetune
    from macai.finetune.expected import require_room_for_weights
    from macai.models.load import load_model
    from macai.report.answers import CANDIDATES, Questions
    from macai.report.writers import require_writers
    from macai.train.events import Summary

    require_writers(recipe.train.log)
    data = _require_data(data or recipe.data.path, "give --data examples.jsonl, or a folder")
    if group is None or group.first:
        _refuse_existing(out, resume=resume, force=force)
    read = read_splits(data)  # bad rows are said before minutes go into fetching a model
    for mix in recipe.data.mix:
        read_learnt(mix.path)
    with reporting() as progress:
        folder = locate_model(recipe.model, progress=progress)
    if recipe.batch.must_fit:
        require_room_for_weights(folder)
    loaded = load_model(folder)
    start = partial(
        finetune, recipe, loaded, data=data, out=out, resume=resume, force=force, group=group
    )
    if group is not None and not group.first:
        _take_part(start)
    ask = None
    if (sample := recipe.sample).rows:
        rows = list(islice(read.valid, CANDIDATES))
        ask = Questions(loaded, rows, count=sample.rows, max_tokens=sample.tokens)
    return _follow(start, TextTrainingView(), Summary, out, recipe, ask)


def run_image_recipe(
    recipe: "DiffusionRecipe", *, data: Path | None, out: Path, resume: bool, force: bool
) -> "ImageSummary":
    """Train on pictures; else as `run_recipe`."""
    from macai.catalog import locate_pipeline
    from macai.cli.training_view import PictureTrainingView
    from macai.finetune_diffusion import finetune_diffusion
    from macai.finetune_diffusion.events import Summary
    from macai.report.writers import require_writers

    require_writers(recipe.train.log)
    data = _require_data(data or recipe.data.path, "give --data and a folder of pictures")
    _refuse_existing(out, resume=resume, force=force)
    model = locate_pipeline(recipe.model)
    start = partial(
        finetune_diffusion, recipe, model, data=data, out=out, resume=resume, force=force
    )
    return _follow(start, PictureTrainingView(), Summary, out, recipe)


def _require_data(data: Path | None, hint: str) -> Path:
    from macai.errors import UsageError

    if data is None:
        raise UsageError("no data to learn from", hint=hint)
    return data


def _refuse_existing(out: Path, *, resume: bool, force: bool) -> None:
    """Refuse a folder that is in use before minutes go into fetching a model."""
    from macai.files import refuse_existing
    from macai.train.unsaved import remove_unsaved

    if not resume:
        remove_unsaved(out)
        refuse_existing(out, force=force)


def _follow(
    start: Callable[..., Iterator[object]],
    view: "TrainingView",
    result: type[Result],
    out: Path,
    recipe: "Recipe | DiffusionRecipe",
    ask: "Questions | None" = None,
) -> Result:
    """Show and record what happens until the result; one asked to stop ends the process."""
    from macai.report import REPORT, recorded
    from macai.report.page import public
    from macai.report.writers import logged
    from macai.train.events import Stopped
    from macai.train.unsaved import remove_unsaved, removing_unsaved

    event: object = None
    ending = partial(remove_unsaved, out)
    with stop_on_signal(ending) as stop_requested, removing_unsaved(out), view:
        events = start(should_stop=lambda: stop_requested() is not None)
        said = public(asdict(recipe))
        events = logged(events, recipe.train.log, out=out, recipe=said, unit=view.unit)
        for event in recorded(events, out, ask=ask):
            view.show(event)
    print(f"report: {out / REPORT}", file=sys.stderr)
    if isinstance(event, Stopped):
        number = stop_requested() or signal.SIGINT
        print(
            f"stopped after step {event.step}; go on with the same command and --resume",
            file=sys.stderr,
        )
        raise typer.Exit(128 + number)
    assert isinstance(event, result)
    return event


def _take_part(start: Callable[..., Iterator[object]]) -> NoReturn:
    """Compute what is this process's in a run that another one shows and writes, and exit."""
    from macai.train.events import Stopped

    with TemporaryDirectory(prefix="macai-") as scratch, stop_on_signal(lambda: None) as requested:
        events = start(out=Path(scratch) / "run", should_stop=lambda: requested() is not None)
        (last,) = deque(events, maxlen=1)
        raise typer.Exit(128 + signal.SIGINT if isinstance(last, Stopped) else 0)


def _result(summary: "Summary | ImageSummary") -> str:
    return f"model: {summary.model}" if summary.model else f"adapter: {summary.adapter}"
