"""Matrix products, in float32 through BLAS."""

import math

import numpy as np

from macai.mil.ops.size import allowed
from macai.mil.registry import Array, Arrays, op


@op("linear")
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """[..., D_in], [D_out, D_in], [D_out] → [..., D_out]."""
    rows = x.reshape(-1, x.shape[-1])
    allowed((len(rows), len(weight)))
    y = rows @ weight.T
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


@op("matmul")
def matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    """[..., M, K] @ [..., K, N] → [..., M, N]."""
    if transpose_x and x.ndim > 1:
        x = x.swapaxes(-1, -2)
    if transpose_y and y.ndim > 1:
        y = y.swapaxes(-1, -2)
    if x.ndim > 1 and y.ndim > 1:
        allowed((*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]))
    return x @ y


@op("einsum")
def einsum(values: Arrays, equation: str) -> Array:
    """Two operands become one batched matrix product; numpy has the rest."""
    sources, arrow, target = equation.replace(" ", "").partition("->")
    labels = sources.split(",")
    is_plain = all(len(set(source)) == len(source) for source in labels) and "." not in equation
    if len(values) != 2 or not arrow or not is_plain:
        allowed(value.size for value in values)  # what the result has at most
        return np.asarray(np.einsum(equation, *values))
    return _pair(values[0], values[1], labels[0], labels[1], target)


def _pair(x: Array, y: Array, x_labels: str, y_labels: str, target: str) -> Array:
    """Contract labelled x and y: batch, rows, inner @ batch, inner, columns."""
    if x.ndim != len(x_labels) or y.ndim != len(y_labels):
        raise ValueError(f"{x_labels},{y_labels} for ranks {x.ndim} and {y.ndim}")
    x, x_labels = _sum_out(x, x_labels, y_labels + target)
    y, y_labels = _sum_out(y, y_labels, x_labels + target)
    shared = [c for c in x_labels if c in y_labels]
    batch = [c for c in shared if c in target]
    inner = [c for c in shared if c not in target]
    rows = [c for c in x_labels if c not in y_labels]
    columns = [c for c in y_labels if c not in x_labels]
    x = x.transpose([x_labels.index(c) for c in batch + rows + inner])
    y = y.transpose([y_labels.index(c) for c in batch + inner + columns])
    n, r, k = len(batch), len(rows), len(inner)
    # A batch of size 1 may meet a larger one.
    batch_shape = np.broadcast_shapes(x.shape[:n], y.shape[:n])
    x3 = x.reshape(*x.shape[:n], math.prod(x.shape[n : n + r]), math.prod(x.shape[n + r :]))
    y3 = y.reshape(*y.shape[:n], math.prod(y.shape[n : n + k]), math.prod(y.shape[n + k :]))
    allowed((*batch_shape, x3.shape[-2], y3.shape[-1]))
    z = (x3 @ y3).reshape((*batch_shape, *x.shape[n : n + r], *y.shape[n + k :]))
    found = batch + rows + columns
    return z.transpose([found.index(c) for c in target])


def _sum_out(x: Array, labels: str, wanted: str) -> tuple[Array, str]:
    """Sum over the labels that nothing else has."""
    axes = tuple(i for i, c in enumerate(labels) if c not in wanted)
    return (x.sum(axis=axes), "".join(c for c in labels if c in wanted)) if axes else (x, labels)
