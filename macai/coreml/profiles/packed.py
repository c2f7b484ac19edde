"""Keys and values of all layers of a chunk in one state.

    kvCache: float16 [2 n, kv_heads, context, head_dim], the keys of its n layers, then their values

Programs with two or three states were seen to fail on the Neural Engine (CoreML-LLM), and ANEMLL's
packages have this one; rank 4 because its compiler had trouble with 5 (executorch#16144).
"""

from collections.abc import Sequence

import mlx.core as mx

from macai.coreml.llm import CacheShape, Store

STATE = "kvCache"


class PackedCaches:
    """A state for each chunk of layers: kvCache, or kvCache_0 and so on where there are several."""

    def __init__(self, chunks: Sequence[range]) -> None:
        """Keep the layers of each chunk together; chunks are in order and have all layers."""
        self._chunks = chunks

    def states(self, shape: CacheShape, context: int, dtype: mx.Dtype) -> dict[str, mx.array]:
        """Return empty states by name."""
        several = len(self._chunks) > 1
        return {
            f"{STATE}_{n}" if several else STATE: mx.zeros(
                (2 * len(layers), shape.kv_heads, context, shape.head_dim), dtype
            )
            for n, layers in enumerate(self._chunks)
        }

    def store(self, shape: CacheShape, offset: mx.array, arrays: Sequence[mx.array]) -> Store:
        """Return what one call writes into."""
        return _PackedStore(self._chunks, offset, arrays)


class _PackedStore:
    def __init__(
        self, chunks: Sequence[range], offset: mx.array, arrays: Sequence[mx.array]
    ) -> None:
        self._arrays = list(arrays)
        self._places = {layer: n for n, layers in enumerate(chunks) for layer in layers}
        self._chunks = chunks
        none = mx.zeros((2,), mx.int32)
        self._begin = mx.concatenate([none, offset, none[:1]])  # of row 0

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return tuple(self._arrays)

    def update(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        place = self._places[layer]
        layers = self._chunks[place]
        rows = layer - layers.start, layer - layers.start + len(layers)
        for row, new in zip(rows, (keys, values), strict=True):
            start = self._begin + mx.array([row, 0, 0, 0], dtype=mx.int32)
            self._arrays[place] = mx.slice_update(
                self._arrays[place], new, start, axes=(0, 1, 2, 3)
            )
        array = self._arrays[place]
        return array[rows[0] : rows[0] + 1], array[rows[1] : rows[1] + 1]
