"""What a model's matrices are multiplied with, on text: second moments of the inputs."""

from collections.abc import Container, Iterable, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.gradients import Gradients
from macai.coreml.matrices import PLACES, matrix_paths
from macai.coreml.watch import watching

Moments = dict[str, np.ndarray]


def input_moments(
    model: nn.Module,
    batches: Sequence[mx.array],
    gradients: Mapping[str, Gradients],
    only: Container[str] | None = None,
    *,
    numbers: Iterable[int] | None = None,
) -> Moments:
    """Return the mean of s x x^T over the inputs x of each matrix, float32 [in, in], by its path.

    s is the squared gradient at the token: with it, what an error e in a row of the matrix costs is
    e^T H e / 2 nats per token. An embedding has moments if it is used as the head too.

    Args:
        model: int32 [B, L] -> logits.
        batches: int32 [B, L] each.
        gradients: Of the same batches: see squared_gradients.
        only: Paths of the matrices; all if None.
        numbers: Of the batches that are run, one after another; all if None.
    """
    paths = {id(m): path for path, m in matrix_paths(model).items() if only is None or path in only}
    sums: dict[str, mx.array] = {}
    tokens, number = 0, 0  # the number of the batch that `seen` sees

    def seen(module: nn.Module, x: mx.array, _: mx.array) -> None:
        if (path := paths.get(id(module))) is not None:
            found = gradients[path].product(number, x, x)
            sums[path] = sums[path] + found if path in sums else found

    with watching(PLACES, seen):
        for number in range(len(batches)) if numbers is None else numbers:
            model(batches[number])
            mx.eval(sums)
            tokens += batches[number].size
    return {path: np.array(total / tokens) for path, total in sums.items()}
