"""Activations, attention and convolutions of a stride in less time, for the CPU backend.

There MLX calls the C library's exp and erf once an element, 10 to 20 ns each, and once more for the
gradient; numpy's exp takes half of one. What is here computes each once and keeps it. The gradient
of a convolution with a stride is forty times slower than that of one without. float32 only; other
types go MLX's way.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

_silu, _gelu, _quick_gelu = nn.silu, nn.gelu, nn.gelu_fast_approx
_attention, _conv2d = mx.fast.scaled_dot_product_attention, mx.conv2d

SAFE = 60.0  # exp of more, or less than minus it, summed over a row is near the ends of float32
# Abramowitz and Stegun, 7.1.26: erf to 1.5e-7.
_T, _SERIES = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_QUICK = 1.702

PIECE = 1 << 14  # numbers computed at once

Pair = tuple[mx.array, mx.array]
Floats = NDArray[np.float32]


@contextmanager
def cpu_ops(model: nn.Module) -> Iterator[None]:
    """On the CPU backend, have `model` compute with what is here.

    Only meanwhile: whoever traces a model must see MLX's own functions.
    """
    if mx.default_device() != mx.cpu:
        yield
        return
    ours: dict[Callable[..., mx.array], Callable[..., mx.array]] = {
        _silu: silu,
        _gelu: gelu,
        _quick_gelu: quick_gelu,
    }
    with ExitStack() as stack:
        for name, function in (("silu", silu), ("gelu", gelu), ("gelu_fast_approx", quick_gelu)):
            _set(stack, nn, name, function)
        _set(stack, mx.fast, "scaled_dot_product_attention", attention)
        _set(stack, mx, "conv2d", conv2d)
        for module in model.modules():  # those that hold the function itself
            held = getattr(module, "_activation", None)
            if held in ours:
                _set(stack, module, "_activation", ours[held])
        yield


def _set(stack: ExitStack, holder: Any, name: str, value: object) -> None:
    stack.callback(setattr, holder, name, getattr(holder, name))
    setattr(holder, name, value)


def _first(outputs: Any) -> mx.array:
    """Return the first of what a custom function returns, which MLX's stubs do not know."""
    return cast(mx.array, outputs[0])


def silu(x: mx.array) -> mx.array:
    """Return nn.silu(x)."""
    return _silu(x) if x.dtype != mx.float32 else _first(_swish(x))


def quick_gelu(x: mx.array) -> mx.array:
    """Return nn.gelu_fast_approx(x)."""
    return _quick_gelu(x) if x.dtype != mx.float32 else _first(_swish(x * _QUICK)) * (1 / _QUICK)


def gelu(x: mx.array) -> mx.array:
    """Return nn.gelu(x), to 1e-6 for |x| up to 5."""
    return _gelu(x) if x.dtype != mx.float32 else _first(_normal(x))


@mx.custom_function
def _swish(x: mx.array) -> Pair:
    return _in_pieces(_swish_piece, x)


def _swish_piece(values: Floats, made: Floats, slope: Floats) -> None:
    """Write silu(values), and share + values * share * (1 - share): its derivative."""
    share = np.negative(values)
    np.exp(share, out=share)
    share += 1
    np.reciprocal(share, out=share)
    np.multiply(values, share, out=made)
    np.subtract(1, share, out=slope)
    slope *= made
    slope += share


@_swish.vjp
def _swish_vjp(primals: mx.array, cotangents: Pair, outputs: Pair) -> mx.array:
    return cotangents[0] * outputs[1]


@mx.custom_function
def _normal(x: mx.array) -> Pair:
    return _in_pieces(_normal_piece, x)


def _normal_piece(values: Floats, made: Floats, slope: Floats) -> None:
    """Write values * Phi(values), and Phi(values) + values * phi(values): its derivative."""
    np.square(values, out=slope)
    slope *= -0.5
    np.exp(slope, out=slope)
    t = np.abs(values)
    t *= _T / math.sqrt(2)
    t += 1
    np.reciprocal(t, out=t)
    tail = t * _SERIES[-1]
    for factor in _SERIES[-2::-1]:
        tail += factor
        tail *= t
    tail *= slope
    tail *= 0.5  # of the normal distribution, beyond |values|
    share = np.where(values < 0, tail, 1 - tail)
    np.multiply(values, share, out=made)
    slope *= values
    slope *= 1 / math.sqrt(2 * math.pi)
    slope += share


@_normal.vjp
def _normal_vjp(primals: mx.array, cotangents: Pair, outputs: Pair) -> mx.array:
    return cotangents[0] * outputs[1]


def _in_pieces(function: Callable[[Floats, Floats, Floats], None], x: mx.array) -> Pair:
    """Return what `function` writes of pieces of `x` that the processor's cache holds."""
    values = np.asarray(x).reshape(-1)
    made, slope = np.empty_like(values), np.empty_like(values)
    with np.errstate(all="ignore"):  # the loop sees what is not finite
        for begin in range(0, len(values), PIECE):
            piece = slice(begin, begin + PIECE)
            function(values[piece], made[piece], slope[piece])
    return mx.array(made.reshape(x.shape)), mx.array(slope.reshape(x.shape))


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | mx.array | None = None,
    **others: Any,
) -> mx.array:
    """Return mx.fast.scaled_dot_product_attention(...): q [B, H, T, D], k and v [B, H, S, D]."""
    plain = q.dtype == mx.float32 and q.shape[1] == k.shape[1] and not others
    if not plain or isinstance(mask, str) or (mask is not None and mask.dtype == mx.bool_):
        return _attention(q, k, v, scale=scale, mask=mask, **others)
    scores = (q * scale) @ k.swapaxes(-1, -2)
    if mask is not None:
        scores = scores + mask
    return _first(_weighted(scores, v))


@mx.custom_function
def _weighted(scores: mx.array, v: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return softmax(scores) @ v, the powers of the softmax and one over their sums."""
    values = np.asarray(scores).reshape(-1, scores.shape[-1])
    powers = np.empty_like(values)
    rows = max(1, PIECE // values.shape[1])
    with np.errstate(all="ignore"):
        for begin in range(0, len(values), rows):
            row, power = values[begin : begin + rows], powers[begin : begin + rows]
            if max(row.max(), -row.min()) >= SAFE:
                row = np.subtract(row, row.max(axis=-1, keepdims=True), out=power)
            np.exp(row, out=power)
    weights = mx.array(powers.reshape(scores.shape))
    inverse = 1 / weights.sum(axis=-1, keepdims=True)
    return (weights @ v) * inverse, weights, inverse


@_weighted.vjp
def _weighted_vjp(
    primals: Pair,
    cotangents: tuple[mx.array, mx.array, mx.array],
    outputs: tuple[mx.array, mx.array, mx.array],
) -> Pair:
    v, (made, powers, inverse) = primals[1], outputs
    along = (cotangents[0] * made).sum(axis=-1, keepdims=True) * inverse
    scaled = cotangents[0] * inverse
    return powers * (scaled @ v.swapaxes(-1, -2) - along), powers.swapaxes(-1, -2) @ scaled


def conv2d(
    x: mx.array,
    weight: mx.array,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    *others: Any,
    **more: Any,
) -> mx.array:
    """Return mx.conv2d(...)."""
    plain = not more and (not others or others == (1, 1))  # dilation and groups
    pads = (padding, padding) if isinstance(padding, int) else padding
    if stride not in (2, (2, 2)) or not plain:
        return _conv2d(x, weight, stride, padding, *others, **more)
    return _halving(pads)(x, weight)


@functools.cache
def _halving(padding: tuple[int, int]) -> Callable[[mx.array, mx.array], mx.array]:
    """Return a convolution of stride 2: every other result, down and across, of one of stride 1."""

    def whole(x: mx.array, weight: mx.array) -> mx.array:
        return _conv2d(x, weight, 1, padding)

    @mx.custom_function
    def half(x: mx.array, weight: mx.array) -> mx.array:
        return _conv2d(x, weight, 2, padding)

    @half.vjp
    def gradient(primals: Pair, cotangent: mx.array, output: mx.array) -> Pair:
        x, weight = primals
        sides = zip(x.shape[1:3], padding, weight.shape[1:3], strict=True)
        rows, columns = (side + 2 * pad - kernel + 1 for side, pad, kernel in sides)
        spread = mx.zeros((x.shape[0], rows, columns, cotangent.shape[-1]))
        spread[:, ::2, ::2] = cotangent
        # Neither is computed unless it is asked for, nor are the results themselves.
        of_x = mx.vjp(lambda x: whole(x, weight), [x], [spread])[1][0]
        of_weight = mx.vjp(lambda w: _conv2d(x, w, 2, padding), [weight], [cotangent])[1][0]
        return of_x, of_weight

    return cast(Callable[[mx.array, mx.array], mx.array], half)
