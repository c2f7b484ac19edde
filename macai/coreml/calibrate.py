"""What a model's matrices are multiplied with, on text: second moments of the inputs."""

from collections.abc import Container, Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from macai.coreml.watch import watching

Moments = dict[str, np.ndarray]
PLACES: list[tuple[type[nn.Module], str]] = [(nn.Linear, "__call__"), (nn.Embedding, "as_linear")]


def matrix_paths(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose weights can be compressed, by the path of the weight."""
    found: dict[str, nn.Module] = {}
    leaves: Any = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    for path, module in leaves:
        if type(module) in (nn.Linear, nn.Embedding):
            found[f"{path}.weight"] = module
    return found


def input_moments(
    model: nn.Module, batches: Iterable[mx.array], only: Container[str] | None = None
) -> Moments:
    """Return the mean of x x^T over the inputs x of each matrix, float32 [in, in], by its path.

    An embedding has moments if it is used as the head too.

    Args:
        model: int32 [B, L] -> logits.
        batches: int32 [B, L] each, run one after another.
        only: Paths of the matrices; all if None.
    """
    paths = {id(m): path for path, m in matrix_paths(model).items() if only is None or path in only}
    sums: dict[str, mx.array] = {}
    counts: dict[str, int] = {}
    last: list[mx.array] = []  # the input of the last product, and its moments

    def seen(module: nn.Module, x: mx.array, _: mx.array) -> None:
        path = paths.get(id(module))
        if path is None:
            return
        if not last or last[0] is not x:  # q, k and v have the same
            last[:] = [x, product(x, x)]
        sums[path] = sums[path] + last[1] if path in sums else last[1]
        counts[path] = counts.get(path, 0) + x.size // x.shape[-1]

    with watching(PLACES, seen):
        for batch in batches:
            model(batch)
            mx.eval(sums)
            last.clear()
    return {path: np.array(total / counts[path]) for path, total in sums.items()}


def product(x: mx.array, y: mx.array) -> mx.array:
    """Return the sum of x y^T over rows [..., in], float32 [in, in]."""
    left, right = (a.reshape(-1, a.shape[-1]).astype(mx.float32) for a in (x, y))
    return left.T @ right
