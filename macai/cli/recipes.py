"""`macai recipes`: what is shipped, what it says, and a copy of your own."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="recipes",
    help="List, show and copy the recipes that come with macai.",
    epilog="Example: macai recipes copy lora mine.toml",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list", epilog="Example: macai recipes list")
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """List the recipes, each with what it does."""
    from macai.catalog import find_recipe, recipe_names

    summaries = {name: _summary(find_recipe(name)) for name in recipe_names()}
    if as_json:
        rows = [{"name": name, "summary": summary} for name, summary in summaries.items()]
        print(json.dumps(rows, ensure_ascii=False))
        return
    width = max(map(len, summaries), default=0)
    for name, summary in summaries.items():
        print(f"{name:{width}}  {summary}")


@app.command(epilog="Example: macai recipes show lora --set adapter.rank=8")
def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name, or a .toml file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a value; may be repeated."),
    ] = None,
) -> None:
    """Print a recipe with every default written out, as it would run."""
    from macai.catalog import find_recipe
    from macai.recipe import dumps, load_any_recipe

    print(dumps(load_any_recipe(find_recipe(recipe), overrides or ())), end="")


@app.command(epilog="Example: macai recipes copy lora mine.toml")
def copy(
    name: Annotated[str, typer.Argument(help="A name that `macai recipes list` prints.")],
    destination: Annotated[
        Path | None, typer.Argument(metavar="[DEST]", help="A .toml file or a folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what exists.")] = False,
) -> None:
    """Copy a recipe to change it, with the data and the model that it names beside it."""
    from macai.catalog import find_recipe
    from macai.errors import OutputError
    from macai.files import atomic_directory, atomic_file
    from macai.recipe import load_any_recipe

    source = find_recipe(name)
    target = destination or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists() and not force:
        raise OutputError(
            f"{target} exists already", hint="name another file, or replace it with --force"
        )
    recipe, shipped = load_any_recipe(source), source.parent.resolve()
    for named in (recipe.data.path, Path(recipe.model)):
        if named is None or not named.is_dir() or not named.is_relative_to(shipped):
            continue
        beside = target.parent / named.relative_to(shipped)
        if not beside.exists():  # what is there already may be the user's own work
            with atomic_directory(beside) as folder:
                shutil.copytree(named, folder, dirs_exist_ok=True)
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)
    print(target)


def _summary(path: Path) -> str:
    """Return the first line of the comment a recipe begins with."""
    with path.open(encoding="utf-8") as f:
        return f.readline().lstrip("# ").rstrip().rstrip(":.")
