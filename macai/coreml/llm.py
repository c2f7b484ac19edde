"""A language model of mlx-lm, unmodified, as two functions that share weights and a state.

    prefill: inputIds int32 [1, T], position int32 [1], last int32 [1] -> logits [1, 1, V]
    decode:  inputIds int32 [1, 1], position int32 [1]                 -> logits [1, 1, V]

Both write keys and values at `position` and after, into the states keyCache and valueCache,
float16 [layers, 1, kv_heads, context, head_dim], and attend to all positions up to their own. The
two differ in width where mlx-lm's do (latent attention: minicpm3, deepseek_v2); layers that differ
in heads or width (gemma4, openelm) each use the beginning of what the largest needs.
`last` is the row of a prefill whose logits are wanted: the last token's; rows behind it are
padding, whose keys are written over by what comes there later. position + T must not exceed the
context. With a slot there is a third state, which they only read: see slot.py.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from macai.coreml.api import ExportFunction
from macai.coreml.counted import counted_by_keys
from macai.coreml.lower import Compress, Settings
from macai.coreml.slot_model import SlotReader
from macai.errors import ExportError, UsageError

KEYS, VALUES = "keyCache", "valueCache"
# States of another width fail on the Neural Engine (coremltools#2631).
CONTEXT_MULTIPLE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """A model's keys, [layers, 1, kv_heads, context, head_dim], and its values, of value_dim.

    Layers are those that keep some: others may read what they kept. Sizes are the largest layer's.
    """

    layers: int
    kv_heads: int
    head_dim: int
    value_dim: int

    def zeros(self, context: int, dtype: mx.Dtype) -> dict[str, mx.array]:
        """Return empty states by name."""
        widths = {KEYS: self.head_dim, VALUES: self.value_dim}
        shape = (self.layers, 1, self.kv_heads, context)
        return {name: mx.zeros((*shape, width), dtype) for name, width in widths.items()}


class Store(Protocol):
    """The arrays that all layers of one call write into, as they are written."""

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """What the states are after all that was written."""
        ...

    def update(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write [1, kv_heads, T, head_dim] at the offset; return all positions of the layer."""
        ...


class Caches(Protocol):
    """How the keys and values of all layers are kept in states."""

    def states(self, shape: CacheShape, context: int, dtype: mx.Dtype) -> dict[str, mx.array]:
        """Return empty states by name."""
        ...

    def store(self, shape: CacheShape, offset: mx.array, arrays: Sequence[mx.array]) -> Store:
        """Return what one call writes into, at `offset`, int32 [1]."""
        ...


class KeysAndValues:
    """One state for the keys, one for the values: see above."""

    def states(self, shape: CacheShape, context: int, dtype: mx.Dtype) -> dict[str, mx.array]:
        """Return empty states by name."""
        return shape.zeros(context, dtype)

    def store(self, shape: CacheShape, offset: mx.array, arrays: Sequence[mx.array]) -> Store:
        """Return what one call writes into."""
        return _Store(offset, *arrays)


class _Store:
    """The arrays of KeysAndValues."""

    def __init__(self, offset: mx.array, keys: mx.array, values: mx.array) -> None:
        self._keys, self._values = keys, values
        none = mx.zeros((3,), mx.int32)
        self._begin = mx.concatenate([none, offset, none[:1]])  # of layer 0

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return self._keys, self._values

    def update(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        start = self._begin + mx.array([layer, 0, 0, 0, 0], dtype=mx.int32)
        axes = tuple(range(5))
        self._keys = mx.slice_update(self._keys, keys[None], start, axes=axes)
        self._values = mx.slice_update(self._values, values[None], start, axes=axes)
        own = slice(layer, layer + 1)
        return (
            self._keys[own, :, : keys.shape[1], :, : keys.shape[3]].squeeze(0),
            self._values[own, :, : values.shape[1], :, : values.shape[3]].squeeze(0),
        )


class LayerCache:
    """One layer's part of the store, where mlx-lm's attention expects its KVCache."""

    def __init__(self, store: Store, layer: int, offset: mx.array, context: int) -> None:
        self._store, self._layer, self.offset = store, layer, offset
        self._place, self._context = offset, context

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write [1, kv_heads, T, head_dim] at the offset; return all positions of the layer."""
        self._held = self._store.update(self._layer, keys, values)
        return self._held

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """Return what was fetched last, for a layer that keeps none of its own."""
        return self._held

    def make_mask(
        self, rows: int, *, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """Return which positions each of the next rows attends to, bool [rows, context]."""
        columns = mx.arange(self._context)[None]
        here = self._place + mx.arange(rows)[:, None]
        mask = columns <= here
        return mask & (here - columns < window_size) if window_size else mask


class _Shapes:
    """A cache that only looks: what shape a layer's keys and values have."""

    def __init__(self, seen: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        self._seen, self.offset = seen, 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._seen.append((tuple(keys.shape), tuple(values.shape)))
        self._held = keys, values
        return self._held

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        return self._held

    def make_mask(self, *_: Any, **__: Any) -> None:
        return None


def cache_shape(model: nn.Module) -> CacheShape:
    """Return the shape of a model's keys and values.

    Raises:
        ExportError: its layers keep something else.
    """
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    caches = make_prompt_cache(model)  # fewer than layers where some read others' keys and values
    kinds = {type(cache) for cache in caches}
    if others := sorted(k.__name__ for k in kinds - {KVCache, RotatingKVCache}):
        raise ExportError(
            f"this model's layers remember {', '.join(others)}, not only keys and values",
            hint="recurrent and mixed models cannot be exported yet",
        )
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    model(mx.zeros((1, 1), mx.int32), cache=[_Shapes(seen) for _ in caches])
    if len(seen) != len(caches):
        raise ExportError(f"of {len(caches)} caches this model writes {len(seen)}")
    return CacheShape(
        layers=len(seen),
        kv_heads=max(shape[1] for pair in seen for shape in pair),
        head_dim=max(keys[3] for keys, _ in seen),
        value_dim=max(values[3] for _, values in seen),
    )


def check_lengths(context: int, prefill: Sequence[int]) -> None:
    """Raise UsageError for a context or a prefill that no package can have."""
    if context % CONTEXT_MULTIPLE or context < CONTEXT_MULTIPLE:
        raise UsageError(
            f"a context of {context} is no multiple of {CONTEXT_MULTIPLE} above 0",
            hint=f"for example {CONTEXT_MULTIPLE * max(round(context / CONTEXT_MULTIPLE), 1)}",
        )
    if bad := [n for n in prefill if not 1 < n <= context]:
        raise UsageError(
            f"a prefill of {bad[0]} tokens is not possible", hint=f"2 to the context, {context}"
        )


def llm_functions(
    model: nn.Module,
    *,
    context: int,
    prefill: Sequence[int] = (64,),
    precision: str = "fp16",
    adapter: str = "",
    compress: Compress | None = None,
    slot: SlotReader | None = None,
    caches: Caches | None = None,
) -> dict[str, ExportFunction]:
    """Return the functions of a language model's package.

    Args:
        model: mlx-lm's; its weights are exported as they are now.
        context: The most positions it keeps, a multiple of 32.
        prefill: How many tokens of a prompt are taken at once. With several lengths the functions
            are called prefill_<length>.
        precision: "fp16" or "fp32".
        adapter: The name of the adapter that is in the model: it ends the functions' names, and its
            matrices are called after it, while all else shares its names with the plain model.
        compress: How matrices are stored: see Settings.
        slot: Of the model, if it has one: its state comes after those of the caches.
        caches: How keys and values are kept; KeysAndValues if not given.
    """
    check_lengths(context, prefill)
    shape = cache_shape(model)
    dtype = mx.float16 if precision == "fp16" else mx.float32
    caches = caches or KeysAndValues()
    states = caches.states(shape, context, dtype)
    kept = len(states)
    if slot is not None:
        states[slot.slot.state] = mx.zeros(slot.slot.shape, dtype)
    settings = Settings(precision=precision, positions=context, compress=compress)

    def run(ids: mx.array, position: mx.array, last: mx.array | None, *arrays: mx.array) -> Any:
        adapter = arrays[kept:]
        store = caches.store(shape, position, arrays[:kept])
        layers = [LayerCache(store, n, position, context) for n in range(shape.layers)]
        counted = counted_by_keys(position, context=context, rows=ids.shape[1])
        with counted, slot.holding(*adapter) if slot else nullcontext():
            logits = model(ids, cache=layers)
        if last is not None:
            logits = mx.slice(logits, last, axes=(1,), slice_size=(1, 1, logits.shape[2]))
        return logits, *store.arrays, *adapter

    def function(rows: int) -> ExportFunction:
        number = mx.zeros((1,), mx.int32)
        inputs = {"inputIds": mx.zeros((1, rows), mx.int32), "position": number}
        fn: Any = lambda ids, position, *states: run(ids, position, None, *states)  # noqa: E731
        if rows > 1:
            inputs["last"] = number
            fn = run
        return ExportFunction(
            fn=fn,
            inputs=inputs,
            outputs=("logits",),
            states=states,
            weights=model,
            named=partial(_shared_name, adapter) if adapter or slot else None,
            settings=settings,
        )

    names = ["prefill"] if len(prefill) == 1 else [f"prefill_{n}" for n in prefill]
    made = {name: function(rows) for name, rows in zip(names, prefill, strict=True)}
    made["decode"] = function(1)
    return {f"{name}_{adapter}" if adapter else name: f for name, f in made.items()}


def _shared_name(adapter: str, path: str) -> str:
    """What a weight of an adapted model is called: the adapter's own after it, others as ever."""
    if path.endswith((".lora_A", ".lora_B")):
        return f"adapters.{adapter}.{path}"
    return path.replace(".linear.", ".")
