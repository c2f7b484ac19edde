"""A training run as data: frozen dataclasses, a strict TOML loader, `--set table.key=value`.

A default is written here and nowhere else. A recipe never executes code, and only `macai.finetune`
and `macai.finetune_diffusion` read one: what lies below them takes plain arguments.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from macai.recipe.diffusion import DiffusionRecipe as DiffusionRecipe
from macai.recipe.fields import Optimizer as Optimizer
from macai.recipe.fields import Schedule as Schedule
from macai.recipe.language import ALL_LINEAR as ALL_LINEAR
from macai.recipe.language import Adapter as Adapter
from macai.recipe.language import Batch as Batch
from macai.recipe.language import Data as Data
from macai.recipe.language import Loss as Loss
from macai.recipe.language import Mixed as Mixed
from macai.recipe.language import Recipe as Recipe
from macai.recipe.language import Sample as Sample
from macai.recipe.language import Train as Train
from macai.recipe.reader import differences as differences
from macai.recipe.reader import dumps as dumps
from macai.recipe.reader import read

_LANGUAGE: Mapping[str, type[Recipe]] = {"language": Recipe}
_ALL: Mapping[str, type[Recipe] | type[DiffusionRecipe]] = {
    "language": Recipe,
    "diffusion": DiffusionRecipe,
}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe for a language model and apply overrides: `key=value` or `table.key=value`.

    The right side of an override is TOML; what is not TOML is taken as the string it looks like.

    Raises:
        RecipeError: Names every unknown or missing key and every wrong value, of the file and of
            the overrides, at once.
    """
    return read(_LANGUAGE, path, overrides)


def load_any_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe | DiffusionRecipe:
    """Read a recipe of any kind; else as `load_recipe`."""
    return read(_ALL, path, overrides)
