"""The slot of a package: room in one state for an adapter that comes at run time.

Of each layer there is A [rank, in] and the transpose of B [rank, out], scaled; what the state holds
is added as x A^T B^T, so that zeros, which any new state is, are the plain model. The matrices lie
one behind another, flat, in a state of two dimensions. An adapter of a smaller rank leaves the last
rows of each zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from macai.errors import AdapterError, UsageError

STATE = "adapter"
# No axis is longer: the least of the limits that are told of (16384 on the Neural Engine).
_LONGEST = 16384
# As for the caches: a state whose width is no multiple fails on the Neural Engine.
_MULTIPLE = 32

Pair = tuple[np.ndarray, np.ndarray]
"""A [r, in] and the transpose of B [r, out] of one layer, float16, the scale in B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotOptions:
    """What is asked for: the highest rank, and the layers, as `target_paths` takes them."""

    rank: int
    targets: Sequence[str] = ("all-linear",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one layer's matrices lie.

    Attributes:
        inputs: The layer's width before.
        outputs: Its width behind.
        a: Of the first element of A, counted in elements of the state, row by row.
        b: Of the first element of B's transpose.
    """

    inputs: int
    outputs: int
    a: int
    b: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What macai.json says of it.

    Attributes:
        rank: The highest an adapter may have.
        state: The name of the state.
        shape: Its shape, [rows, width].
        base: Identity of the model: see models.identity.
        layers: Place of each layer's matrices, by the layer's path.
    """

    rank: int
    state: str
    shape: tuple[int, int]
    base: Mapping[str, str]
    layers: Mapping[str, Place]

    @staticmethod
    def parse(value: Mapping[str, Any]) -> "Slot":
        """Read it from JSON values.

        Raises:
            ValueError, TypeError, KeyError: they describe no slot.
        """
        layers = {str(path): Place(**place) for path, place in value["layers"].items()}
        rows, width = value["shape"]
        slot = Slot(**(dict(value) | {"layers": layers, "shape": (rows, width)}))
        places = [(p.inputs, p.outputs, p.a + 1, p.b + 1) for p in layers.values()]
        numbers = [slot.rank, rows, width, *(n for place in places for n in place)]
        if not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError("the slot's rank, shape and places must be whole numbers above 0")
        ends = [
            place + slot.rank * size
            for p in layers.values()
            for place, size in ((p.a, p.inputs), (p.b, p.outputs))
        ]
        if max(ends, default=0) > rows * width:
            raise ValueError("the slot has places behind its state's end")
        return slot

    def fill(self, layers: Mapping[str, Pair]) -> dict[str, np.ndarray]:
        """Return the state, float16 [rows, width], that holds an adapter; by its name.

        Raises:
            AdapterError: it has a layer, a shape or a rank for which there is no room.
        """
        self.check({path: (a.shape, b.shape) for path, (a, b) in layers.items()})
        flat = np.zeros(self.shape[0] * self.shape[1], np.float16)
        for path, pair in layers.items():
            place = self.layers[path]
            for start, matrix in zip((place.a, place.b), pair, strict=True):
                flat[start : start + matrix.size] = matrix.reshape(-1)
        return {self.state: flat.reshape(self.shape)}

    def check(self, shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        """Raise AdapterError if matrices of these shapes, A's and B's by layer, do not fit."""
        if unknown := [path for path in shapes if path not in self.layers]:
            raise AdapterError(
                f"the package has no room for {unknown[0]} ({len(unknown)} such)",
                hint="export the model with --slot-target for it, or train without it",
            )
        rank = max((a[0] for a, _ in shapes.values()), default=0)
        if rank > self.rank:
            raise AdapterError(
                f"an adapter of rank {rank}, and the package has room for rank {self.rank}",
                hint=f"export the model with --adapter-slot {rank}",
            )
        for path, (a, b) in shapes.items():
            place = self.layers[path]
            if a[1:] != (place.inputs,) or b[1:] != (place.outputs,) or a[0] != b[0]:
                raise AdapterError(
                    f"{path} has A {list(a)} and B {list(b)}, the package takes "
                    f"[r, {place.inputs}] and [r, {place.outputs}]",
                    hint="it was made for another model",
                )


def lay_out(
    groups: Sequence[Sequence[str]],
    sizes: Mapping[str, tuple[int, int]],
    *,
    rank: int,
    base: Mapping[str, str],
) -> Slot:
    """Give every layer its place.

    Args:
        groups: Paths of layers that read one value: their A's lie together, as one matrix.
        sizes: (out, in) of each layer.
        rank: The highest an adapter may have.
        base: Identity of the model.

    Raises:
        UsageError: no layers, or no rank.
    """
    if rank < 1 or not any(groups):
        raise UsageError("a slot needs a rank of at least 1, and a layer")
    layers: dict[str, Place] = {}
    end = 0
    for group in groups:
        inputs = sizes[group[0]][1]
        second = end + len(group) * rank * inputs
        for number, path in enumerate(group):
            outputs = sizes[path][0]
            first = end + number * rank * inputs
            layers[path] = Place(inputs=inputs, outputs=outputs, a=first, b=second)
            second += rank * outputs
        end = second
    width = _row(rank * gcd(*(size for pair in sizes.values() for size in pair)))
    rows = -(-end // width)
    return Slot(
        rank=rank,
        state=STATE,
        shape=(-(-rows // _MULTIPLE) * _MULTIPLE, width),
        base=dict(base),
        layers=layers,
    )


def _row(size: int) -> int:
    """Return the longest row that divides every matrix, so that each begins and ends with one."""
    return max(n for n in range(1, min(size, _LONGEST) + 1) if size % n == 0)
