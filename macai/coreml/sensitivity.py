"""What it costs a model to store a matrix in fewer bits, computed for each scheme.

The cost is the Kullback-Leibler divergence of the model's next-token distributions from what they
were, nats per token: to second order the increase of the loss, without the noise of the text's own
tokens. To that order it is e^T H e / 2 for the error e of a row, with the inputs' moments H as
calibrate.py weighs them; what feedback leaves of that is in gptq.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.allocate import choose_bits
from macai.coreml.calibrate import input_moments
from macai.coreml.compress import Scheme
from macai.coreml.gptq import Inputs
from macai.coreml.gradients import Gradients
from macai.coreml.matrices import matrix_paths

Progress = Callable[[int, int], None]
_ROWS = 256  # of a matrix that tell the error of all
_MOMENTS_BYTES = 2e9  # in memory at once, of both halves


@dataclass(slots=True)
class Sensitivity:
    """What each scheme may cost each matrix.

    Attributes:
        sizes: Elements of each matrix, by its path.
        divergences: Nats per token by path and scheme.
        bits: Bits per weight, scales and tables included, by path and scheme.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    divergences: dict[str, dict[Scheme, float]] = field(default_factory=dict)
    bits: dict[str, dict[Scheme, float]] = field(default_factory=dict)

    def choose(self, bits_per_weight: float) -> dict[str, Scheme]:
        """Return the scheme of each matrix for the least divergence at a mean number of bits."""
        by_bits: dict[str, dict[float, Scheme]] = {}
        errors: dict[str, dict[float, float]] = {}
        for path, costs in self.divergences.items():
            by_bits[path], errors[path] = {}, {}
            for scheme, cost in costs.items():
                bits = self.bits[path][scheme]
                if cost < errors[path].get(bits, np.inf):
                    by_bits[path][bits], errors[path][bits] = scheme, cost
        chosen = choose_bits(errors, self.sizes, bits_per_weight)
        return {path: by_bits[path][bits] for path, bits in chosen.items()}


def expect_divergences(
    model: nn.Module,
    batches: Sequence[mx.array],
    gradients: Mapping[str, Gradients],
    schemes: Iterable[Scheme],
    *,
    progress: Progress = lambda done, total: None,
) -> Sensitivity:
    """Return what each scheme may cost each matrix of a model.

    Feedback saves less on other text than on that it is known from, and for some matrices far less:
    what it saves is taken from either half of the batches for the other.

    Args:
        model: int32 [B, L] -> logits.
        batches: Text, int32 [B, L] each; two at least.
        gradients: On the same text: see squared_gradients.
        schemes: Which to try; those that a matrix's shape refuses are left out for it.
        progress: Told how many matrices are done, and of how many.
    """
    found, schemes = Sensitivity(), list(schemes)
    modules = matrix_paths(model)
    done = 0
    for paths in _parts(modules):
        halves = [
            input_moments(model, batches, gradients, paths, numbers=range(k, len(batches), 2))
            for k in (0, 1)
        ]
        for path in paths:
            weight = np.array(modules[path].weight.astype(mx.float16)).astype(np.float32)
            shape = (weight.shape[0], weight.shape[1])
            found.sizes[path] = weight.size
            known = [half.pop(path) for half in halves if path in half]
            counts = _counts(gradients[path], known, shape)
            for scheme in schemes:
                if scheme.refusal(shape) is None:
                    bits = 8 * scheme.size_bytes(shape) / weight.size
                    cost = _expected(scheme, weight, *counts)
                    found.divergences.setdefault(path, {})[scheme] = cost
                    found.bits.setdefault(path, {})[scheme] = bits
            done += 1
            progress(done, len(modules))
    return found


def _parts(modules: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """Part the paths of matrices, so that the moments of a part's inputs are not too many."""
    part: list[str] = []
    size = 0
    for path, module in modules.items():
        own = 8 * module.weight.shape[1] ** 2
        if part and size + own > _MOMENTS_BYTES:
            yield part
            part, size = [], 0
        part.append(path)
        size += own
    yield part


def _counts(
    gradients: Gradients, halves: Sequence[np.ndarray], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a squared error counts by column, in a row of mean importance; and by row."""
    by_row, by_column = np.ones(shape[0]), np.zeros(shape[1])
    for one, other in permutations(halves, 2):
        by_column += Inputs(one).importance_for(other) * shape[0] / 2
    if gradients.multiplies:
        by_row = gradients.rows / gradients.rows.mean()
    if gradients.columns is not None:  # each token reads one row
        by_column += gradients.columns
    return by_column, by_row


def _expected(
    scheme: Scheme, weight: np.ndarray, by_column: np.ndarray, by_row: np.ndarray
) -> float:
    """Return the cost of a scheme, from some of the rows: they are alike, and many in a table."""
    step = max(len(weight) // _ROWS, 1)
    step = 1 if scheme.refusal(weight[::step].shape) else step
    some, counts = weight[::step], by_row[::step]
    error = np.square(scheme.apply(some).dense() - some) @ by_column
    return float(error @ counts / max(counts.sum(), 1e-30)) / 2
