"""Keys and values of all layers of a chunk in one state.

    kvCache: float16 [2 n, kv_heads, context, head_dim], the keys of its n layers, then their values

Heads and width are the largest layer's; others use the beginning of theirs.

Programs with two or three states were seen to fail on the Neural Engine (CoreML-LLM), and ANEMLL's
packages have this one; rank 4 because its compiler had trouble with 5 (executorch#16144).
"""

from collections.abc import Sequence

import mlx.core as mx

from macai.coreml.llm import CacheShape, Store
from macai.errors import ExportError

STATE = "kvCache"


class PackedCaches:
    """A state for each chunk of layers: kvCache, or kvCache_0 and so on where there are several."""

    def __init__(self, chunks: Sequence[range]) -> None:
        """Keep the layers of each chunk together; chunks are in order and have all layers."""
        self._chunks = chunks

    def states(self, shape: CacheShape, context: int, dtype: mx.Dtype) -> dict[str, mx.array]:
        """Return empty states by name.

        Raises:
            ExportError: the model does not keep keys and values once a layer.
        """
        if shape.layers != self._chunks[-1].stop:
            raise ExportError(
                f"{self._chunks[-1].stop} layers keep {shape.layers} pairs of keys and values, and "
                "this profile has one for each",
                hint="export with --profile gpu",
            )
        several, width = len(self._chunks) > 1, max(shape.head_dim, shape.value_dim)
        return {
            f"{STATE}_{n}" if several else STATE: mx.zeros(
                (2 * len(layers), shape.kv_heads, context, width), dtype
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
        own = [
            self._arrays[place][row : row + 1, : new.shape[1], :, : new.shape[3]]
            for row, new in zip(rows, (keys, values), strict=True)
        ]
        return own[0], own[1]
