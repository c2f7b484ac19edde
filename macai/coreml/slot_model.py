"""A model whose linear layers also apply what a slot holds, while it is traced."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.coreml.slot import Slot, SlotOptions, lay_out
from macai.models.lora import linear_shape, target_paths


class SlotLinear(nn.Module):
    """A linear layer plus what the slot has for it: y = W x + B A x."""

    def __init__(self, linear: nn.Module, path: str, reader: "SlotReader") -> None:
        super().__init__()
        self.linear = linear
        self._path, self._reader = path, reader

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out]."""
        return self._reader.adapted(self._path, x, self.linear(x))


class SlotReader:
    """Reads matrices from the state, which it has for the time of a call.

    Attributes:
        slot: Where they lie.
    """

    slot: Slot

    def __init__(self) -> None:
        self._state: mx.array | None = None
        self._groups: dict[str, list[str]] = {}
        self._seen: list[tuple[mx.array, str]] | None = None
        self._first: dict[str, mx.array] = {}  # by layer, the products with A of the last value
        self._read: mx.array | None = None  # that value

    @contextlib.contextmanager
    def holding(self, state: mx.array) -> Iterator[None]:
        """Apply what is in `state`, [rows, width], while the context is open."""
        self._state = state
        try:
            yield
        finally:
            self._state, self._read, self._first = None, None, {}

    def watch(self, model: nn.Module) -> list[list[str]]:
        """Run the model, unevaluated; return the layers, those that read one value together."""
        seen = self._seen = []
        model(mx.zeros((1, 1), mx.int32))
        self._seen = None
        groups: dict[int, list[str]] = {}
        for x, path in seen:  # it keeps every x, so that no two have one id
            if path not in self._groups:
                self._groups[path] = groups.setdefault(id(x), [])
                self._groups[path].append(path)
        return list(groups.values())

    def adapted(self, path: str, x: mx.array, y: mx.array) -> mx.array:
        """Return y + B A x; y alone where no state is held."""
        if self._seen is not None:
            self._seen.append((x, path))
        if self._state is None:
            return y
        if self._read is not x or path not in self._first:
            self._read, self._first = x, self._low(self._groups[path], x)
        place = self.slot.layers[path]
        b = self._matrix(place.b, self.slot.rank, place.outputs, x)
        return y + self._first[path] @ b

    def _low(self, group: Sequence[str], x: mx.array) -> dict[str, mx.array]:
        """Return A x of all layers of a group, from one product: [..., rank] each."""
        place = self.slot.layers[group[0]]
        a = self._matrix(place.a, len(group) * self.slot.rank, place.inputs, x)
        product = x @ a.swapaxes(-1, -2)
        parts = mx.split(product, len(group), axis=-1) if len(group) > 1 else [product]
        return dict(zip(group, parts, strict=True))

    def _matrix(self, start: int, rows: int, columns: int, x: mx.array) -> mx.array:
        """Return [rows, columns] from a place in the state, of as many axes as `x`."""
        assert self._state is not None
        width = self.slot.shape[1]
        part = self._state[start // width : (start + rows * columns) // width]
        shape = (*(1 for _ in x.shape[:-2]), rows, columns)
        return part.reshape(shape).astype(x.dtype)


def add_slot(model: nn.Module, options: SlotOptions, base: Mapping[str, str]) -> SlotReader:
    """Put a SlotLinear in place of each layer that is asked for; return what they read with.

    Args:
        model: mlx-lm's, without an adapter.
        options: Rank and layers. Layers that the model does not run get no place.
        base: The model's identity.

    Raises:
        UsageError: a target that matches nothing.
    """
    modules = dict(model.named_modules())
    reader = SlotReader()
    paths = target_paths(model, options.targets)
    sizes = {path: linear_shape(modules[path]) for path in paths}
    wrapped = [(path, SlotLinear(modules[path], path, reader)) for path in paths]
    model.update_modules(tree_unflatten(wrapped))
    groups = reader.watch(model)
    used = {path: sizes[path] for group in groups for path in group}
    slot = lay_out(groups, used, rank=options.rank, base=base)
    # In the model's order, for those who read it.
    reader.slot = replace(slot, layers={p: slot.layers[p] for p in paths if p in slot.layers})
    return reader
