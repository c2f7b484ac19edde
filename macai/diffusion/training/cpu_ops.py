"""Activations, attention and convolutions of a stride in less time, for the CPU backend.

There MLX calls the C library's exp and erf once an element, 10 to 20 ns each, and again for the
gradient. What is here computes each once, in less time (macai/models/exponential.py), and keeps it.
The gradient of a convolution with a stride is forty times
slower than that of one without. float32 only; other types go MLX's way.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from macai.models.exponential import LEAST, as_is, attend, exp

_silu, _gelu, _quick_gelu = nn.silu, nn.gelu, nn.gelu_fast_approx
_attention, _conv2d = mx.fast.scaled_dot_product_attention, mx.conv2d

# Abramowitz and Stegun, 7.1.26: erf to 1.5e-7.
_T, _SERIES = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_QUICK = 1.702

Pair = tuple[mx.array, mx.array]


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
    return _first(_swish(x)) if _is_ours(x) else _silu(x)


def quick_gelu(x: mx.array) -> mx.array:
    """Return nn.gelu_fast_approx(x)."""
    return _first(_swish(x * _QUICK)) * (1 / _QUICK) if _is_ours(x) else _quick_gelu(x)


def gelu(x: mx.array) -> mx.array:
    """Return nn.gelu(x), to 1e-6."""
    return _first(_normal(x)) if _is_ours(x) else _gelu(x)


@mx.custom_function
def _swish(x: mx.array) -> Pair:
    """Return x * share of x, and the derivative: share + x * share * (1 - share)."""
    share = 1 / (1 + exp(-x))
    made = x * share
    return made, share + made * (1 - share)


@_swish.vjp
def _swish_vjp(primals: mx.array, cotangents: Pair, outputs: Pair) -> mx.array:
    return cotangents[0] * outputs[1]


@mx.custom_function
def _normal(x: mx.array) -> Pair:
    """Return x * Phi(x) of the normal distribution, and the derivative: Phi(x) + x * phi(x)."""
    density = exp(x * x * -0.5)
    t = 1 / (mx.abs(x) * (_T / math.sqrt(2)) + 1)
    tail = t * _SERIES[-1]
    for factor in _SERIES[-2::-1]:
        tail = (tail + factor) * t
    tail = tail * density * 0.5  # of the distribution, beyond |x|
    share = mx.where(x < 0, tail, 1 - tail)
    return x * share, share + x * density * (1 / math.sqrt(2 * math.pi))


@_normal.vjp
def _normal_vjp(primals: mx.array, cotangents: Pair, outputs: Pair) -> mx.array:
    return cotangents[0] * outputs[1]


def _is_ours(x: mx.array) -> bool:
    return x.dtype == mx.float32 and x.size >= LEAST


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
    small = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] < LEAST
    if small or not plain or isinstance(mask, str) or (mask is not None and mask.dtype == mx.bool_):
        return _attention(q, k, v, scale=scale, mask=mask, **others)
    return attend(q * scale, k, v, (lambda s: s + mask) if mask is not None else as_is, as_is)


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
