"""The matrices of a language model that can be stored in fewer bits, and where they multiply."""

from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

PLACES: list[tuple[type[nn.Module], str]] = [(nn.Linear, "__call__"), (nn.Embedding, "as_linear")]


def matrix_paths(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose weights can be compressed, by the path of the weight."""
    found: dict[str, nn.Module] = {}
    leaves: Any = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    for path, module in leaves:
        if type(module) in (nn.Linear, nn.Embedding):
            found[f"{path}.weight"] = module
    return found
