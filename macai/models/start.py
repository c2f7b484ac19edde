"""Where an adapter starts: what A and B are before the first step.

Each start is a function of a layer's weight; none changes the base, so a quantised one of any width
stays as it is, and what is saved is a plain LoRA for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx
from threadpoolctl import threadpool_limits

OVERSAMPLING = 8
POWER_STEPS = 4


@dataclass(frozen=True, slots=True)
class Factors:
    """Where a layer starts.

    Attributes:
        A: float32 [rank, in].
        B: float32 [out, rank].
        subtract: Whether scale * B A of the start is taken off again, so that nothing changes.
    """

    A: mx.array
    B: mx.array
    subtract: bool


Start = Callable[[mx.array, mx.array | None, int, float, mx.array], Factors]
"""(weight [out, in], the original weight or None, rank, scale, key) -> Factors."""


def pissa(
    weight: mx.array, original: mx.array | None, rank: int, scale: float, key: mx.array
) -> Factors:
    """Train the directions of the weight itself that matter most (Meng et al., arXiv:2404.02948).

    There the base becomes what is left, W - scale B A. Here that product is subtracted beside the
    base, which is the same sum: a base that is quantised already need not be rounded once more.
    """
    return Factors(*_halves(weight, rank, scale, key), subtract=True)


def loftq(
    weight: mx.array, original: mx.array | None, rank: int, scale: float, key: mx.array
) -> Factors:
    """Start from what the base lost when it was quantised, as in LoftQ (arXiv:2310.08659).

    One step of Li et al.'s iteration, for a base whose bits are given: the best B A of that rank
    for the original weight minus the quantised one.
    """
    assert original is not None
    return Factors(*_halves(original - weight, rank, scale, key), subtract=False)


STARTS: Mapping[str, Start] = {"pissa": pissa, "loftq": loftq}


def _halves(matrix: mx.array, rank: int, scale: float, key: mx.array) -> tuple[mx.array, mx.array]:
    """Return A and B with scale B A the best approximation of that rank, alike in size."""
    u, s, vt = truncated_svd(matrix, rank, key)
    root = mx.sqrt(s / scale)
    a, b = root[:, None] * vt, u * root
    mx.eval(a, b)
    return a, b


def truncated_svd(
    matrix: mx.array, rank: int, key: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Return U [M, rank], S [rank] and Vᵀ [rank, N] of a float32 matrix [M, N].

    Randomised (Halko et al., arXiv:0909.4061, algorithm 4.4) with a few power steps: the cost of a
    dozen products of the matrix with rank + 8 columns. On one thread, so that every process gets
    the same bits.
    """
    width = min(rank + OVERSAMPLING, *matrix.shape)
    if rank > min(matrix.shape):
        raise ValueError(f"rank {rank} of a matrix {list(matrix.shape)}")
    with threadpool_limits(1, user_api="blas"):
        q = mx.random.normal((matrix.shape[1], width), key=key)
        for _ in range(POWER_STEPS):
            q, _ = mx.linalg.qr(matrix @ q, stream=mx.cpu)
            q, _ = mx.linalg.qr(matrix.T @ q, stream=mx.cpu)
        q, _ = mx.linalg.qr(matrix @ q, stream=mx.cpu)
        u, s, vt = mx.linalg.svd(q.T @ matrix, stream=mx.cpu)
        u, s, vt = q @ u[:, :rank], s[:rank], vt[:rank]
        mx.eval(u, s, vt)
    return u, s, vt
