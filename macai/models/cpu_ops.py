"""Norms, rotary positions and attention in fewer steps, for the CPU backend.

There MLX takes each of `mx.fast`'s functions apart into dozens of primitives, and its gradient into
as many again. In a small model handing out primitives is a third of a training step. What is here
computes the same with fewer, and gives the gradient in closed form.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.models.exponential import LEAST, Change, as_is, attend
from macai.models.swiglu import fast_swiglu

_fast_rms_norm, _fast_rope = mx.fast.rms_norm, mx.fast.rope
_fast_attention = mx.fast.scaled_dot_product_attention


@contextmanager
def cpu_ops(model: nn.Module) -> Iterator[None]:
    """On the CPU backend, have `model` compute with what is here and in swiglu.py.

    Only meanwhile: whoever traces the model must see MLX's own functions.
    """
    if mx.default_device() != mx.cpu:
        yield
        return
    ours: dict[str, Callable[..., mx.array]] = {
        "rms_norm": rms_norm,
        "rope": rope,
        "scaled_dot_product_attention": attention,
    }
    with ExitStack() as stack:
        stack.enter_context(fast_swiglu(model))
        for name, function in ours.items():
            stack.callback(setattr, mx.fast, name, getattr(mx.fast, name))
            setattr(mx.fast, name, function)
        yield


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, **stream: Any) -> mx.array:
    """Return mx.fast.rms_norm(x, weight, eps): [..., D] over its last axis, float32."""
    if weight is None or x.dtype != mx.float32 or weight.dtype != mx.float32:
        return _fast_rms_norm(x, weight, eps, **stream)
    return _rms_norm(eps)(x, weight)[0]


@functools.cache
def _rms_norm(eps: float) -> Callable[..., tuple[mx.array, mx.array]]:
    @mx.custom_function
    def norm(x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
        mean = (x * x).sum(axis=-1, keepdims=True) * (1 / x.shape[-1])
        inverse = mx.rsqrt(mean + eps)
        return x * inverse * weight, inverse

    @norm.vjp
    def gradient(
        primals: tuple[mx.array, mx.array],
        cotangents: tuple[mx.array, mx.array],
        outputs: tuple[mx.array, mx.array],
    ) -> tuple[mx.array, mx.array]:
        (x, weight), inverse = primals, outputs[1]
        scaled = cotangents[0] * weight
        along = (scaled * x).sum(axis=-1, keepdims=True)
        pull = along * inverse * inverse * (1 / x.shape[-1])
        axes = tuple(range(x.ndim - 1))
        return (scaled - x * pull) * inverse, (cotangents[0] * x * inverse).sum(axis=axes)

    return cast(Callable[..., tuple[mx.array, mx.array]], norm)


def rope(
    a: mx.array,
    dims: int,
    *,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: int | mx.array,
    freqs: mx.array | None = None,
    **stream: Any,
) -> mx.array:
    """Return mx.fast.rope(...): here where all of a float32 [..., T, D] turns, in halves."""
    plain = freqs is None and base is not None and isinstance(offset, int)
    if not plain or traditional or dims != a.shape[-1] or a.dtype != mx.float32:
        return _fast_rope(
            a,
            dims,
            traditional=traditional,
            base=base,
            scale=scale,
            offset=offset,
            freqs=freqs,
            **stream,
        )
    assert base is not None
    assert isinstance(offset, int)
    cos, sin = _angles(a.shape[-2], offset, dims, float(base), float(scale))
    return cast(mx.array, _rotate(a, cos, sin))


@mx.custom_function
def _rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    return x * cos + _swapped(x) * sin


@_rotate.vjp
def _rotate_vjp(
    primals: tuple[mx.array, mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    _, cos, sin = primals
    back = cotangent * cos - _swapped(cotangent) * sin  # by the same angle, the other way round
    return back, mx.zeros_like(cos), mx.zeros_like(sin)


def _swapped(x: mx.array) -> mx.array:
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([second, first], axis=-1)


@functools.lru_cache(maxsize=64)
def _angles(rows: int, offset: int, dims: int, base: float, scale: float) -> tuple[mx.array, ...]:
    """cos, and sin with the sign of each half, float32 [rows, dims]."""
    speeds = base ** (-np.arange(0, dims, 2) / dims) * scale
    half = np.arange(offset, offset + rows)[:, None] * speeds
    cos, sin = np.cos(half), np.sin(half)
    tables = np.concatenate([cos, cos], axis=-1), np.concatenate([-sin, sin], axis=-1)
    return tuple(mx.array(t.astype(np.float32)) for t in tables)


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | mx.array | None = None,
    sinks: mx.array | None = None,
    **stream: Any,
) -> mx.array:
    """Return mx.fast.scaled_dot_product_attention(...): q [B, H, T, D], k and v [B, KV, S, D].

    Heads that share keys are folded into the rows of one product: a third of the products in a
    model with three such heads. float32 only.
    """
    B, H, T, D = q.shape
    KV, S = k.shape[1:3]
    for_each_head = isinstance(mask, mx.array) and mask.ndim > 2 and mask.shape[-3] > 1
    small = B * H * T * S < LEAST
    if small or q.dtype != mx.float32 or sinks is not None or for_each_head:
        return _fast_attention(q, k, v, scale=scale, mask=mask, sinks=sinks, **stream)
    folded = q.reshape(B, KV, H // KV * T, D) * scale
    hide, unhide = _hiding(mask, (B, KV, H // KV, T, S))
    return attend(folded, k, v, hide, unhide).reshape(B, H, T, v.shape[-1])


def _hiding(mask: str | mx.array | None, shape: tuple[int, ...]) -> tuple[Change, Change]:
    """Return what a mask, the same for all heads, does to scores, and the gradient of that."""
    if mask is None:
        return as_is, as_is
    shown = _causal(*shape[3:]) if isinstance(mask, str) else mask
    if shown.ndim > 2:
        shown = shown.reshape(-1, 1, 1, *shown.shape[-2:])

    def hide(scores: mx.array) -> mx.array:
        unfolded = scores.reshape(shape)
        if shown.dtype != mx.bool_:
            return (unfolded + shown).reshape(scores.shape)
        # Not -inf: a row of padding sees nothing, and its softmax must be a number.
        return mx.where(shown, unfolded, mx.finfo(scores.dtype).min).reshape(scores.shape)

    def unhide(slope: mx.array) -> mx.array:
        return mx.where(shown, slope.reshape(shape), 0).reshape(slope.shape)

    all_rows_see = isinstance(mask, str) or shown.dtype != mx.bool_
    return hide, as_is if all_rows_see else unhide


@functools.lru_cache(maxsize=64)
def _causal(rows: int, columns: int) -> mx.array:
    return mx.arange(columns - rows, columns)[:, None] >= mx.arange(columns)[None]
