"""Normalizations. Results have the shape of x."""

import numpy as np

from macai.mil.ops.activation import per_channel
from macai.mil.registry import Array, Ints, op

F = np.float32


@op("layer_norm")
def layer_norm(
    x: Array,
    axes: Ints | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """Over `axes` (all); gamma and beta have the sizes of those axes, in order."""
    axes = tuple(range(x.ndim)) if axes is None else tuple(sorted(a % x.ndim for a in axes))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return _affine(_normalized(x, axes, epsilon), gamma, beta, shape)


@op("instance_norm")
def instance_norm(
    x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: float = 1e-5
) -> Array:
    """X [B, C, ...], over all but B and C; gamma and beta [C]."""
    normalized = _normalized(x, tuple(range(2, x.ndim)), epsilon)
    return _affine(normalized, gamma, beta, [x.shape[1]] + [1] * (x.ndim - 2))


@op("batch_norm")
def batch_norm(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """X [B, C, ...], the others [C]."""
    scale = F(1) / np.sqrt(variance + F(epsilon))
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    return x * per_channel(scale, x) + per_channel(shift, x)


@op("l2_norm")
def l2_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """Over the last three axes together."""
    squares = np.square(x).sum(axis=tuple(range(-min(3, x.ndim), 0)), keepdims=True)
    return x / np.sqrt(squares + F(epsilon))


@op("local_response_norm")
def local_response_norm(
    x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Array:
    """X [B, C, ...], over `size` neighbouring channels."""
    C = x.shape[1]
    before, after = size // 2, (size - 1) // 2
    padding = [(0, 0)] * x.ndim
    padding[1] = (before + 1, after)
    sums = np.cumsum(np.pad(np.square(np.asarray(x, np.float64)), padding), axis=1)
    window = np.asarray(sums[:, size : size + C] - sums[:, :C], F)
    return x / np.power(F(k) + F(alpha / size) * window, F(beta))


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return centred / np.sqrt(variance + F(epsilon))


def _affine(x: Array, gamma: Array | None, beta: Array | None, shape: list[int]) -> Array:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    if beta is not None:
        x = x + beta.reshape(shape)
    return x
