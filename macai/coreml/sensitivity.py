"""What it costs a model to store a matrix in fewer bits: measured once a matrix, then computed.

The cost is the Kullback-Leibler divergence of the model's next-token distributions from what they
were, nats per token: to second order the increase of the loss, without the noise of the text's own
tokens. To that order it is proportional to the squared error of the matrix's output, which needs no
model: one measurement gives the factor, and each scheme's error its cost.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.allocate import choose_bits
from macai.coreml.calibrate import Moments, matrix_paths
from macai.coreml.compress import Scheme
from macai.coreml.gptq import Inputs
from macai.models.arrays import scalar

Progress = Callable[[int, int], None]
MOST = 256  # matrices that are measured: all of a model's, most often
_ROWS = 256  # of a matrix that tell the error of all
TRIED = Scheme.parse("scaled4")  # what a matrix is replaced by, to see what errors in it cost


@dataclass(slots=True)
class Sensitivity:
    """What each scheme costs each matrix.

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


def measure_sensitivity(
    model: nn.Module,
    batches: Sequence[mx.array],
    schemes: Iterable[Scheme],
    *,
    moments: Moments,
    most: int = MOST,
    progress: Progress = lambda done, total: None,
) -> Sensitivity:
    """Return what each scheme costs each matrix of a model.

    Each matrix in turn is replaced by a coarse one and put back. Of a model with more than `most`,
    matrices evenly spread are measured, and the others have the factor of the last one of their
    name: layers next to each other are alike.

    Args:
        model: int32 [B, L] -> logits [B, L, V]. It is as it was when this returns or raises.
        batches: Texts to run, int32 [B, L] each.
        schemes: Which to try; those that a matrix's shape refuses are left out for it.
        moments: Second moments of inputs, as input_moments gives them; where there are none, as of
            a table that is no head, all inputs count alike.
        most: How many matrices to measure.
        progress: Told how many matrices are done, and of how many.
    """
    found, schemes = Sensitivity(), list(schemes)
    modules = matrix_paths(model)
    before = [_log_probabilities(model(batch)) for batch in batches]
    mx.eval(before)
    tokens = sum(batch.size for batch in batches)
    stride = -(-len(modules) // most)
    factors: dict[str, float] = {}
    for number, (path, module) in enumerate(modules.items()):
        weight = np.array(module.weight.astype(mx.float16)).astype(np.float32)
        counts = _counts(moments.get(path), weight.shape[1])
        name = path.split(".")[-2]
        if number % stride == 0 or name not in factors:
            dense = TRIED.apply(weight).dense()
            divergence = _replaced(model, module, dense, batches, before) / tokens
            factors[name] = divergence / max(_squared(dense - weight, moments.get(path)), 1e-30)
        found.sizes[path] = weight.size
        shape = (weight.shape[0], weight.shape[1])
        for scheme in schemes:
            if scheme.refusal(shape) is None:
                error = _expected(scheme, weight, counts)
                found.divergences.setdefault(path, {})[scheme] = factors[name] * error
                found.bits.setdefault(path, {})[scheme] = 8 * scheme.size_bytes(shape) / weight.size
        progress(number + 1, len(modules))
    return found


def _counts(moments: np.ndarray | None, columns: int) -> np.ndarray:
    """Return what an error of each column counts when it is fed back: see gptq.py."""
    return np.ones(columns) if moments is None else Inputs(moments).importance


def _expected(scheme: Scheme, weight: np.ndarray, counts: np.ndarray) -> float:
    """Return the error of a scheme, from some of the rows: they are alike, and many in a table."""
    some = weight[:: max(len(weight) // _ROWS, 1)]
    some = weight if scheme.refusal(some.shape) else some
    error = np.square(scheme.apply(some).dense() - some).sum(0) @ counts
    return float(error) * len(weight) / len(some)


def _squared(error: np.ndarray, moments: np.ndarray | None) -> float:
    """Return the squared error of a matrix's output."""
    moved = error if moments is None else error @ moments
    return float(np.einsum("ij,ij->", moved, error, dtype=np.float64))


def _replaced(
    model: nn.Module,
    module: nn.Module,
    dense: np.ndarray,
    batches: Sequence[mx.array],
    before: Sequence[mx.array],
) -> float:
    """Return the divergence with another weight, nats."""
    weight, total = module.weight, 0.0
    try:
        module.weight = mx.array(dense).astype(weight.dtype)
        for batch, was in zip(batches, before, strict=True):
            total += scalar(_divergence(was, model(batch)))
    finally:
        module.weight = weight
    return max(total, 0.0)


def _log_probabilities(logits: mx.array) -> mx.array:
    wide = logits.astype(mx.float32)
    return wide - mx.logsumexp(wide, axis=-1, keepdims=True)


def _divergence(before: mx.array, logits: mx.array) -> mx.array:
    # In float32 both: float16 would add 2e-5 nats of its own, more than many a matrix costs.
    return (mx.exp(before) * (before - _log_probabilities(logits))).sum()
