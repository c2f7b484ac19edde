"""SwiGLU without the library's exp, for the CPU backend.

In a small model that would be a third of a forward pass: see exponential.py.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.models.exponential import exp


def sigmoid(x: mx.array) -> mx.array:
    """Return 1 / (1 + exp(-x)) of float32 `x`, to a relative error of 2e-6."""
    return 1 / (1 + exp(-x))


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    share = sigmoid(gate)
    return gate * share * x, share


@_swiglu.vjp
def _swiglu_vjp(
    primals: tuple[mx.array, mx.array],
    cotangents: tuple[mx.array, mx.array],
    outputs: tuple[mx.array, mx.array],
) -> tuple[mx.array, mx.array]:
    gate, x = primals
    share = outputs[1]  # kept: the backward pass would compute it anew
    silu = gate * share
    return cotangents[0] * x * (share + silu * (1 - share)), cotangents[0] * silu


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """Return silu(gate) * x, float32."""
    product: mx.array = _swiglu(gate, x)[0]  # type: ignore[index]
    return product


@contextmanager
def fast_swiglu(model: nn.Module) -> Iterator[None]:
    """On the CPU backend, have `model` use `swiglu` above instead of mlx-lm's, which it imports.

    Only meanwhile: whoever traces the model must see mlx-lm's.
    """
    from mlx_lm.models import activations

    module: Any = sys.modules[type(model).__module__]
    theirs = getattr(module, "swiglu", None)
    if theirs is not activations.swiglu or mx.default_device() != mx.cpu:
        yield
        return
    module.swiglu = swiglu
    try:
        yield
    finally:
        module.swiglu = theirs
