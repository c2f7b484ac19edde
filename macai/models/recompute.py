"""Gradient checkpointing (Chen et al., arXiv:1604.06174): less memory for a second forward pass.

What a block computes on its way is not kept for the backward pass but computed again from the
block's input. The second time it must draw what it drew the first time: another dropout mask would
give the gradient of another loss.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn


@contextmanager
def recomputed(model: nn.Module, *, wanted: bool = True) -> Iterator[None]:
    """Meanwhile, have each of `model.layers` keep nothing but its input; numbers stay the same."""
    layers: Sequence[Any] = model.layers if wanted else ()
    kinds = [type(layer) for layer in layers]
    made = {kind: type(kind.__name__, (kind,), {"__call__": _call}) for kind in set(kinds)}
    for layer, kind in zip(layers, kinds, strict=True):
        layer.__class__ = made[kind]  # Python looks for __call__ in the class only
    try:
        yield
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind


def is_recomputed(model: nn.Module) -> bool:
    """Return whether `recomputed` is at work on this model: such a step cannot be compiled.

    What was drawn is drawn again from numbers that a trace does not have.
    """
    layers: Sequence[Any] = getattr(model, "layers", ())
    return any(type(layer).__call__ is _call for layer in layers)


def _call(layer: Any, *args: Any, **options: Any) -> Any:
    """Call the layer; what its gradient goes through goes in and out as an argument."""
    plain = type(layer).__bases__[0].__call__
    caches = [a for a in (*args, *options.values()) if hasattr(a, "kept")]
    key = _state()
    calls = 0

    def inner(
        parameters: Any, kept: list[Any], args: Any, options: Any
    ) -> tuple[Any, list[list[mx.array]]]:
        nonlocal calls
        calls += 1
        before = layer.trainable_parameters(), [cache.kept for cache in caches]
        _put(layer, caches, parameters, kept)
        if calls == 1:
            out = plain(layer, *args, **options)
        else:
            out = _drawing_from(key, plain, layer, *args, **options)
        after = [cache.kept for cache in caches]
        _put(layer, caches, *before)
        return out, after

    run = cast(Any, mx.checkpoint(inner))
    out, kept = run(layer.trainable_parameters(), [c.kept for c in caches], args, options)
    _put(layer, caches, layer.trainable_parameters(), kept)
    return out


def _drawing_from(key: mx.array, function: Any, *args: Any, **options: Any) -> Any:
    """Call a function with the random state `key`, uint32 [2], and leave the state as it is."""
    before = _state()
    _restore(key)
    try:
        return function(*args, **options)
    finally:
        _restore(before)


def _state() -> mx.array:
    return cast(mx.array, mx.random.state[0])  # type: ignore[index]


def _restore(key: mx.array) -> None:
    high, low = cast(list[int], key.tolist())
    mx.random.seed(high << 32 | low)  # MLX has no other way to set its state


def _put(layer: Any, caches: list[Any], parameters: Any, kept: list[list[mx.array]]) -> None:
    layer.update(parameters)
    for cache, arrays in zip(caches, kept, strict=True):
        cache.kept = arrays
