"""`macai plan`: what a run will take, before it takes it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from macai.cli.train import changed_recipe

if TYPE_CHECKING:
    from macai.finetune.plan import MemoryPlan, Option

_TERMS = {
    "weights": "the model's weights, with the adapter",
    "optimizer": "the optimiser's state",
    "gradients": "gradients",
    "activations": "what the blocks keep for the backward pass",
    "working": "what is being computed",
    "head": "logits of the learnt tokens, and their gradient",
    "update": "the update, new beside old",
    "others": "the other processes that share a step",
}


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe by name or a .toml file.")] = "lora",
    model: Annotated[
        str | None,
        typer.Option(help="A catalogue name, a folder, a .gguf file or a hub id."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The rows of the run; without, all are as long as they may be."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: batch.tokens=4096."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Load the model, take two steps, correct by them."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Say how much memory a run of macai train will take, and which settings fit this machine.

    No weights are loaded: it follows from the model's shapes and from the lengths of the rows. The
    exit code is 1 if the run would not fit.

    Example: macai plan lora --model smollm2-135m --data examples.jsonl --set batch.tokens=4096
    """
    from macai.catalog import locate_model
    from macai.cli.progress import reporting
    from macai.errors import UsageError
    from macai.finetune.plan import plan as plan_run
    from macai.recipe import Recipe

    wanted = changed_recipe(recipe, model, override)
    if not isinstance(wanted, Recipe):
        raise UsageError("macai plan is for language models, and the recipe is for pictures")
    with reporting() as progress:
        folder = locate_model(wanted.model, progress=progress)
    made = plan_run(wanted, folder, data or wanted.data.path, probing=probe)
    if as_json:
        print(json.dumps(made.to_json()))
    else:
        _print(made)
    if made.expected.fits is False:
        raise typer.Exit(1)


def _print(plan: "MemoryPlan") -> None:
    expected, part = plan.expected, plan.expected.part
    print(
        f"{_gigabytes(expected.footprint.total)} at most, in "
        f"{'one process' if expected.workers == 1 else f'{expected.workers} processes'}, with "
        f"{_rows(part.rows)} of {part.width} tokens at once, {part.learnt} of them learnt"
    )
    for name, size in _terms(plan):
        print(f"  {_gigabytes(size):>9}  {_TERMS[name]}")
    if (probe := plan.probe) is not None:
        print(
            f"two steps took {_gigabytes(probe.measured_bytes)} where "
            f"{_gigabytes(probe.expected_bytes)} were expected; the above is corrected by that"
        )
    elif not expected.measured:
        print("on this backend no run was measured to check this with: --probe does")
    _print_room(plan)
    if plan.options:
        print("\nwhat fits at once, by the length of rows:")
        print(f"  {'tokens':>6}  {'as it is':>18}  {'batch.recompute':>18}")
        widths = sorted({option.width for option in plan.options})
        for width in widths:
            cells = [_cell(o) for o in plan.options if o.width == width]
            print(f"  {width:>6}  {cells[0]:>18}  {cells[1]:>18}")


def _print_room(plan: "MemoryPlan") -> None:
    expected = plan.expected
    if expected.fits is None:
        print("this system does not say how much memory is free")
        return
    needed = f"{_gigabytes(expected.process_bytes)} with Python and all else"
    total = f" of {_gigabytes(plan.total_bytes)}" if plan.total_bytes else ""
    print(f"{needed}; {_gigabytes(expected.room)}{total} are free")
    if expected.fits:
        print("it fits")
    elif plan.changes is None:
        print("it does not fit, and no smaller part does: try fewer adapter.layers, shorter rows")
    else:
        print("it does not fit; it would with", " ".join(f"--set {c}" for c in plan.changes))


def _terms(plan: "MemoryPlan") -> list[tuple[str, int]]:
    from dataclasses import asdict

    return [(name, size) for name, size in asdict(plan.expected.footprint).items() if size]


def _cell(option: "Option") -> str:
    size = _gigabytes(option.memory_bytes)
    return f"{_rows(option.rows)} {size}" if option.rows else f"none ({size})"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
