"""What it costs a model to store one matrix in fewer bits: measured, one matrix at a time.

The cost is the Kullback-Leibler divergence of the model's next-token distributions from what they
were, nats per token: to second order the increase of the loss, without the noise of the text's own
tokens.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.allocate import choose_bits
from macai.coreml.calibrate import matrix_paths
from macai.coreml.compress import Scheme
from macai.models.arrays import scalar

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Sensitivity:
    """What each scheme costs each matrix.

    Attributes:
        sizes: Elements of each matrix, by its path.
        divergences: Nats per token by path and scheme.
        bits: Bits per weight, scales and tables included, by path and scheme.
        measured: How many of these divergences were measured; the others follow from these, as
            proportional to the error of the layer's output.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    divergences: dict[str, dict[Scheme, float]] = field(default_factory=dict)
    bits: dict[str, dict[Scheme, float]] = field(default_factory=dict)
    measured: int = 0

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
    moments: Mapping[str, np.ndarray] | None = None,
    budget_seconds: float = float("inf"),
    progress: Progress | None = None,
) -> Sensitivity:
    """Return what each scheme costs each matrix of a model.

    Each matrix in turn is replaced by what it is after compression, and put back. When the budget
    is used up, the rest is estimated: the divergence is proportional to tr(E H E^T), the squared
    error of the layer's output, by the factor measured for this matrix, or the median of those
    that were measured.

    Args:
        model: int32 [B, L] -> logits [B, L, V]. It is as it was when this returns or raises.
        batches: Texts to run, int32 [B, L] each.
        schemes: Which to try; those that a matrix's shape refuses are left out for it.
        moments: Second moments H of inputs, as input_moments gives them; used by the schemes, too.
            Without them E alone is squared.
        budget_seconds: When to stop measuring.
        progress: Told how many divergences are measured, and of how many.
    """
    began = time.monotonic()
    moments = moments or {}
    tried = _Trial(model, batches, moments)
    jobs = [
        (scheme, path)
        for scheme in sorted(schemes, key=lambda s: s.bits)  # a large error tells most
        for path in tried.matrices
        if scheme.refusal(tried.matrices[path].shape) is None
    ]
    factors: dict[str, float] = {}
    waiting = []
    for number, (scheme, path) in enumerate(jobs):
        if time.monotonic() - began > budget_seconds:
            waiting = jobs[number:]
            break
        divergence, error = tried.measure(scheme, path)
        tried.note(scheme, path, divergence)
        tried.result.measured += 1
        if error > 0:
            factors.setdefault(path, divergence / error)
        if progress is not None:
            progress(number + 1, len(jobs))
    usual = float(np.median(list(factors.values()))) if factors else 1.0
    for scheme, path in waiting:
        tried.note(scheme, path, factors.get(path, usual) * tried.compressed(scheme, path)[1])
    return tried.result


class _Trial:
    """A model, its matrices, and what it says as it is."""

    def __init__(
        self, model: nn.Module, batches: Sequence[mx.array], moments: Mapping[str, np.ndarray]
    ) -> None:
        self.batches, self.moments = batches, moments
        self.modules = matrix_paths(model)
        self.matrices = {
            path: np.array(module.weight.astype(mx.float32))
            for path, module in self.modules.items()
        }
        self.result = Sensitivity(sizes={path: w.size for path, w in self.matrices.items()})
        self._model = model
        self._tokens = sum(batch.size for batch in batches)
        self._before = [_log_probabilities(model(batch)) for batch in batches]
        mx.eval(self._before)

    def compressed(self, scheme: Scheme, path: str) -> tuple[np.ndarray, float]:
        """Return what a matrix becomes, and the squared error of its layer's output."""
        weight, moments = self.matrices[path], self.moments.get(path)
        dense = scheme.apply(weight, moments).dense()
        error = dense - weight
        moved = error if moments is None else error @ moments
        return dense, float(np.einsum("ij,ij->", moved, error, dtype=np.float64))

    def measure(self, scheme: Scheme, path: str) -> tuple[float, float]:
        """Return the divergence, nats per token, and the error."""
        dense, error = self.compressed(scheme, path)
        module = self.modules[path]
        weight = module.weight
        try:
            module.weight = mx.array(dense).astype(weight.dtype)
            total = 0.0
            for batch, before in zip(self.batches, self._before, strict=True):
                total += scalar(_divergence(before, self._model(batch)))
        finally:
            module.weight = weight
        return max(total, 0.0) / self._tokens, error

    def note(self, scheme: Scheme, path: str, divergence: float) -> None:
        """Write a divergence down."""
        rows, columns = self.matrices[path].shape
        bits = 8 * scheme.size_bytes((rows, columns)) / (rows * columns)
        self.result.divergences.setdefault(path, {})[scheme] = divergence
        self.result.bits.setdefault(path, {})[scheme] = bits


def _log_probabilities(logits: mx.array) -> mx.array:
    wide = logits.astype(mx.float32)
    return wide - mx.logsumexp(wide, axis=-1, keepdims=True)


def _divergence(before: mx.array, logits: mx.array) -> mx.array:
    # In float32 both: float16 would add 2e-5 nats of its own, more than many a matrix costs.
    return (mx.exp(before) * (before - _log_probabilities(logits))).sum()
