"""Activations. Results have the shape of x."""

import numpy as np

from macai.mil.blocks import BLOCK, in_blocks
from macai.mil.ops.unary import erf_array
from macai.mil.registry import Array, op

F = np.float32


def sigmoid_array(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)); exp overflows to infinity for very negative x, and that gives 0."""
    return F(1) / (F(1) + np.exp(-x))


@op("sigmoid")
def sigmoid(x: Array) -> Array:
    return in_blocks(sigmoid_array, x)


@op("silu")
def silu(x: Array) -> Array:
    return in_blocks(lambda part: part * sigmoid_array(part), x)


@op("relu")
def relu(x: Array) -> Array:
    return np.maximum(x, F(0))


@op("relu6")
def relu6(x: Array) -> Array:
    return np.minimum(np.maximum(x, F(0)), F(6))


@op("clamped_relu")
def clamped_relu(x: Array, alpha: float, beta: float) -> Array:
    return np.minimum(np.where(x >= 0, x, F(alpha) * x), F(beta))


@op("leaky_relu")
def leaky_relu(x: Array, alpha: float) -> Array:
    return np.where(x >= 0, x, F(alpha) * x)


@op("thresholded_relu")
def thresholded_relu(x: Array, alpha: float) -> Array:
    return np.where(x >= F(alpha), x, F(0))


@op("prelu")
def prelu(x: Array, alpha: Array) -> Array:
    """X [B, C, ...], alpha [C]."""
    return np.where(x >= 0, x, per_channel(alpha, x) * x)


@op("elu")
def elu(x: Array, alpha: float) -> Array:
    return np.where(x >= 0, x, F(alpha) * np.expm1(np.minimum(x, F(0))))


@op("gelu")
def gelu(x: Array, mode: str = "EXACT") -> Array:
    if mode not in GELUS:
        raise ValueError(f"gelu has no mode {mode!r}")
    return in_blocks(GELUS[mode], x)


def _exact_gelu(x: Array) -> Array:
    return F(0.5) * x * (F(1) + erf_array(x / F(np.sqrt(2))))


def _tanh_gelu(x: Array) -> Array:
    return F(0.5) * x * (F(1) + np.tanh(F(np.sqrt(2 / np.pi)) * (x + F(0.044715) * x * x * x)))


def _sigmoid_gelu(x: Array) -> Array:
    return x * sigmoid_array(F(1.702) * x)


GELUS = {
    "EXACT": _exact_gelu,
    "TANH_APPROXIMATION": _tanh_gelu,
    "SIGMOID_APPROXIMATION": _sigmoid_gelu,
}
"""The function of each mode."""


@op("linear_activation")
def linear_activation(x: Array, alpha: float, beta: float) -> Array:
    return F(alpha) * x + F(beta)


@op("scaled_tanh")
def scaled_tanh(x: Array, alpha: float, beta: float) -> Array:
    return F(alpha) * np.tanh(F(beta) * x)


@op("sigmoid_hard")
def sigmoid_hard(x: Array, alpha: float, beta: float) -> Array:
    return np.clip(F(alpha) * x + F(beta), F(0), F(1))


@op("softplus")
def softplus(x: Array) -> Array:
    return np.logaddexp(F(0), x)


@op("softplus_parametric")
def softplus_parametric(x: Array, alpha: Array, beta: Array) -> Array:
    """X [B, C, ...], alpha and beta [C]."""
    return per_channel(alpha, x) * np.logaddexp(F(0), per_channel(beta, x) * x)


@op("softsign")
def softsign(x: Array) -> Array:
    return x / (F(1) + np.abs(x))


@op("softmax")
def softmax(x: Array, axis: int = -1) -> Array:
    return softmax_array(x, axis)


def softmax_array(x: Array, axis: int) -> Array:
    """Return exp(x) over its sum along `axis`; a row of nothing but -inf gives NaN.

    Some rows at a time: the scores of attention at 64x64 are a gigabyte.
    """
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    out = np.empty_like(rows)
    length = rows.shape[-1] or 1
    step = max(1, BLOCK // length)
    flat, into = rows.reshape(-1, length), out.reshape(-1, length)
    for begin in range(0, len(flat), step):
        part, values = flat[begin : begin + step], into[begin : begin + step]
        np.subtract(part, part.max(axis=-1, keepdims=True), out=values)
        np.exp(values, out=values)
        values /= values.sum(axis=-1, keepdims=True)
    return np.ascontiguousarray(np.moveaxis(out, -1, axis))


def per_channel(values: Array, x: Array) -> Array:
    """Shape [C] so that it broadcasts along axis 1 of x."""
    return values.reshape(x.shape[1], *[1] * (x.ndim - 2))
