"""Rotary positions (Su et al., arXiv:2104.09864), captured whole: see marks.py.

cos and sin are the same for all layers: they are read once from tables, or computed once.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from macai.coreml.builder import mb
from macai.coreml.graph import Node
from macai.coreml.ops.sizes import counted
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How one RoPE turns: pair n of position p by the angle p * speeds[n].

    Attributes:
        dims: How many of a head's dimensions turn.
        traditional: Whether neighbours are a pair (2n, 2n + 1), or halves (n, n + dims / 2).
        speeds: float64 [dims / 2].
        label: What tells it from others in a name.
    """

    dims: int
    traditional: bool
    speeds: np.ndarray
    label: str

    def angles(self, positions: np.ndarray) -> np.ndarray:
        """[P] -> float64 [P, dims], each angle where its two dimensions are."""
        half = positions[:, None] * self.speeds[None]
        if self.traditional:
            return np.repeat(half, 2, axis=-1)
        return np.concatenate([half, half], axis=-1)

    @property
    def signs(self) -> np.ndarray:
        """[dims]: of the sine, so that x cos + swapped x sin is the rotation."""
        half = self.dims // 2
        if self.traditional:
            return np.tile([-1.0, 1.0], half)
        return np.repeat([-1.0, 1.0], half)


def one_offset(node: Node) -> str | None:
    """One offset for all rows, an even number of dimensions."""
    offset = node.operand("offset")
    if offset is not None and math.prod(offset.shape) != 1:
        return "an offset for each row"
    return "an odd number of dimensions" if node.options["dims"] % 2 else None


@lowers("RoPE", accepts=one_offset)
def rope(lowering: "Lowering", node: Node, x: Var, *_: Var) -> Var:
    """[..., T, D]: the first `dims` of D are turned by position."""
    rotation = rotation_of(lowering, node)
    shape, dims = node.inputs[0].shape, rotation.dims
    cos, sin = cos_and_sin(lowering, node, rotation, shape[-2])
    head = x if dims == shape[-1] else last_axis(x, 0, dims)
    if rotation.traditional:
        pairs = [last_axis(head, 1, dims, 2), last_axis(head, 0, dims, 2)]
        swapped = mb.reshape(x=mb.stack(values=pairs, axis=-1), shape=[*shape[:-1], dims])
    else:
        swapped = mb.concat(values=mb.split(x=head, num_splits=2, axis=-1)[::-1], axis=-1)
    turned = mb.add(x=mb.mul(x=head, y=cos), y=mb.mul(x=swapped, y=sin))
    if dims == shape[-1]:
        return turned
    return mb.concat(values=[turned, last_axis(x, dims, shape[-1])], axis=-1)


def last_axis(x: Var, begin: int, end: int, stride: int = 1) -> Var:
    """Return x[..., begin:end:stride]."""
    whole = [True] * (x.rank - 1) + [False]
    zeros = [0] * (x.rank - 1)
    return mb.slice_by_index(
        x=x,
        begin=[*zeros, begin],
        end=[*zeros, end],
        stride=[1] * (x.rank - 1) + [stride],
        begin_mask=whole,
        end_mask=whole,
    )


def rotation_of(lowering: "Lowering", node: Node) -> Rotation:
    """Return how a RoPE turns.

    Raises:
        ValueError: that is not known now.
    """
    options, freqs = node.options, node.operand("freqs")
    dims, base, scale = options["dims"], options["base"], options["scale"]
    if freqs is None:
        speeds = float(base) ** (-np.arange(0, dims, 2) / dims)
    else:
        periods = lowering.array(freqs)
        if periods is None:
            raise ValueError("its frequencies are computed from the inputs")
        speeds = 1 / periods.astype(np.float64)
    label = f"{dims}_{freqs.name if freqs else base}_{scale}_{options['traditional']}"
    return Rotation(
        dims=dims, traditional=options["traditional"], speeds=scale * speeds, label=label
    )


def cos_and_sin(lowering: "Lowering", node: Node, rotation: Rotation, rows: int) -> tuple[Var, Var]:
    """Return cos and signed sin of the positions of `rows` rows, [rows, dims] each."""
    kind = lowering.mil_type(node.outputs[0])
    offset = node.operand("offset")
    known = np.array(node.options.get("offset", 0)) if offset is None else lowering.array(offset)
    if known is not None and is_symbolic(rows):
        start = lowering.const(known.reshape(-1), "int32")
    elif known is not None:
        first = int(known.reshape(-1)[0])
        positions = np.arange(first, first + rows)
        key = ("rope", first, rows, rotation.label, kind)
        return lowering.once(key, lambda: _tables(lowering, positions, rotation, kind))
    else:
        assert offset is not None
        start = lowering.var(offset)
    key = ("rope", start.name, rows, rotation.label, kind)
    return lowering.once(key, lambda: _looked_up(lowering, start, rows, rotation, kind))


def _looked_up(
    lowering: "Lowering", start: Var, rows: int, rotation: Rotation, kind: str
) -> tuple[Var, Var]:
    """Return cos and sin at given positions: from tables where it is known how many there are."""
    steps = counted(lowering, rows)
    places = lowering.once(("rows", start.name, rows), lambda: mb.add(x=start, y=steps))
    limit = lowering.settings.positions
    if limit is None:
        return _computed(lowering, places, rotation, kind)
    name = f"rope_{limit}_{rotation.label}"
    cos, sin = lowering.once(
        ("rope tables", name, kind),
        lambda: _tables(lowering, np.arange(limit), rotation, kind, name),
    )
    return mb.gather(x=cos, indices=places, axis=0), mb.gather(x=sin, indices=places, axis=0)


def _computed(lowering: "Lowering", places: Var, rotation: Rotation, kind: str) -> tuple[Var, Var]:
    column = mb.expand_dims(x=mb.cast(x=places, dtype="fp32"), axes=[1])
    angle = mb.mul(x=column, y=rotation.angles(np.ones(1)).astype(np.float32))
    sin = mb.mul(x=mb.sin(x=angle), y=rotation.signs.astype(np.float32))
    return lowering.cast(mb.cos(x=angle), kind), lowering.cast(sin, kind)


def _tables(
    lowering: "Lowering", positions: np.ndarray, rotation: Rotation, kind: str, name: str = ""
) -> tuple[Var, Var]:
    angles = rotation.angles(positions)
    return (
        lowering.const(np.cos(angles), kind, name=name and f"{name}_cos"),
        lowering.const(np.sin(angles) * rotation.signs, kind, name=name and f"{name}_sin"),
    )
