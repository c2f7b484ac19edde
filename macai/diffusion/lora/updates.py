"""What a LoRA file says of one layer: factors of what is added to its weight.

All arrays are as torch has them: linear weights [out, in], convolutions [out, in, height, width].
The kinds are LoRA (Hu et al., arXiv:2106.09685) and LoCon, LoHa (Hyeon-Woo et al.,
arXiv:2108.06098), LoKr (Yeh et al., arXiv:2309.14859), whole differences, and DoRA (Liu et al.,
arXiv:2402.09353) upon any of them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

_EPS = 1.1920929e-07  # LyCORIS adds it to norms: the smallest step of float32 at 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude:
    """DoRA: the norm each output (or input) of the sum W + delta is brought to.

    Attributes:
        vector: [out] or [in].
        per: What it has an entry for: "output" in PEFT, "input" by default in LyCORIS.
        strength_inside: What a strength s other than 1 means: m (W + s delta) / |W + s delta| as in
            PEFT; else W + s (m (W + delta) / |W + delta| - W) as LyCORIS, A1111 and ComfyUI do.
    """

    vector: mx.array
    per: Literal["output", "input"]
    strength_inside: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """up down: [out, rank] and [rank, in]; of a convolution [out, rank, 1, 1], [rank, in, h, w].

    With `mid` [rank, rank, h, w], `down` is [rank, in, 1, 1] (LoCon's Tucker form).
    """

    down: mx.array
    up: mx.array
    mid: mx.array | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def product(self) -> mx.array:
        down, up = (_float32(x).reshape(x.shape[0], -1) for x in (self.down, self.up))
        if self.mid is not None:
            return _tucker(_float32(self.mid), up.T, down)
        return (up @ down).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hadamard:
    """LoHa: (w1_a w1_b) * (w2_a w2_b), a [out, rank], b [rank, in or in h w].

    With t1 and t2 [rank, rank, h, w], a is [rank, out] and b [rank, in].
    """

    w1_a: mx.array
    w1_b: mx.array
    w2_a: mx.array
    w2_b: mx.array
    t1: mx.array | None = None
    t2: mx.array | None = None

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        if self.t1 is not None:
            return (self.w1_a.shape[1], self.w1_b.shape[1], *self.t1.shape[2:])
        return (self.w1_a.shape[0], *self.w1_b.shape[1:])

    def product(self) -> mx.array:
        first = _factor(self.w1_a, self.w1_b, self.t1)
        return first * _factor(self.w2_a, self.w2_b, self.t2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kronecker:
    """LoKr: w1 (x) w2, each whole or a product a b; w2 [out2, in2(, h, w)] may have a core t2.

    Attributes:
        w1: [out1, in1], or the pair ([out1, rank], [rank, in1]).
        w2: [out2, in2(, h, w)], or a pair as `Hadamard` has them.
        t2: [rank, rank, h, w] or None.
    """

    w1: mx.array | tuple[mx.array, mx.array]
    w2: mx.array | tuple[mx.array, mx.array]
    t2: mx.array | None = None

    @property
    def rank(self) -> int | None:
        """The rank of the factors; None where both are whole, and LyCORIS's scale is 1."""
        pair = self.w2 if isinstance(self.w2, tuple) else self.w1
        return pair[1].shape[0] if isinstance(pair, tuple) else None

    @property
    def shape(self) -> tuple[int, ...]:
        first = _pair_shape(self.w1, None)
        second = _pair_shape(self.w2, self.t2)
        return (first[0] * second[0], first[1] * second[1], *second[2:])

    def product(self) -> mx.array:
        first = _factor(*self.w1) if isinstance(self.w1, tuple) else _float32(self.w1)
        if isinstance(self.w2, tuple):
            second = _factor(*self.w2, self.t2)
        else:
            second = _float32(self.w2)
        # [out1, 1, in1, 1] * [1, out2, 1, in2 h w]: with a kernel behind, mx.kron would not do.
        flat = second.reshape(second.shape[0], -1)
        product = first[:, None, :, None] * flat[None, :, None, :]
        return product.reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """The whole difference of a weight."""

    diff: mx.array

    @property
    def rank(self) -> None:
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.diff.shape

    def product(self) -> mx.array:
        return _float32(self.diff)


Factors = LowRank | Hadamard | Kronecker | Full


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What a file adds to one weight: scale * the factors' product.

    Attributes:
        factors: What it is made of.
        scale: alpha / rank, or what a file has in its place.
        magnitude: DoRA's norms, or None.
        bias: What is added to the bias, [out], or None; not scaled.
    """

    factors: Factors
    scale: float = 1.0
    magnitude: Magnitude | None = None
    bias: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """Every array of it."""
        names = type(self.factors).__dataclass_fields__
        values = [getattr(self.factors, name) for name in names]
        flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
        own = [self.magnitude.vector if self.magnitude else None, self.bias]
        return [v for v in (*flat, *own) if v is not None]


def fits(update: Update, shape: tuple[int, ...]) -> bool:
    """Return whether `update` is for a weight of `shape`.

    A 1x1 convolution and a linear layer are the same, and a factored convolution may come flat.
    """
    own, weight = _without_1x1(update.factors.shape), _without_1x1(shape)
    flat = own[:1] == weight[:1] and len(own) == 2 and own[1] == math.prod(weight[1:])
    if update.magnitude is not None:
        entries = weight[0] if update.magnitude.per == "output" else weight[1]
        if update.magnitude.vector.size != entries:
            return False
    return own == weight or flat


def delta(
    update: Update, *, weight: mx.array | None = None, strength: float | mx.array = 1.0
) -> mx.array:
    """Return what to add to a weight, float32 in torch's layout.

    Args:
        update: What a file says of the layer.
        weight: The layer's weight in torch's layout; DoRA needs it, others take its shape.
        strength: What the user scales the whole adapter with; 0 adds nothing, also for DoRA, where
            PEFT would keep the trained norms.
    """
    product = update.factors.product() * update.scale
    if weight is not None:
        product = product.reshape(weight.shape)
    if update.magnitude is None:
        return product * strength
    if weight is None:
        raise ValueError("DoRA's delta depends on the weight")
    weight, magnitude = _float32(weight), update.magnitude
    inside = strength if magnitude.strength_inside else 1.0
    outside = 1.0 if magnitude.strength_inside else strength
    total = weight + inside * product
    axis = 0 if magnitude.per == "output" else 1
    others = [n for n in range(total.ndim) if n != axis]
    norms = mx.sqrt(mx.sum(total * total, axis=others, keepdims=True)) + _EPS
    change = total * (_float32(magnitude.vector).reshape(norms.shape) / norms) - weight
    return mx.where(mx.array(strength) == 0, mx.zeros_like(change), outside * change)


def _float32(x: mx.array) -> mx.array:
    return x.astype(mx.float32)


def _without_1x1(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _factor(a: mx.array, b: mx.array, core: mx.array | None = None) -> mx.array:
    if core is not None:
        return _tucker(_float32(core), _float32(a), _float32(b))
    b = _float32(b)
    return (_float32(a) @ b.reshape(b.shape[0], -1)).reshape(a.shape[0], *b.shape[1:])


def _tucker(core: mx.array, out: mx.array, into: mx.array) -> mx.array:
    """Contract core [m, n, h, w], out [m, O], into [n, I] -> [O, I, h, w]."""
    return mx.einsum("mnhw,mo,ni->oihw", core, out, into)


def _pair_shape(
    value: mx.array | tuple[mx.array, mx.array], core: mx.array | None
) -> tuple[int, ...]:
    if not isinstance(value, tuple):
        return value.shape
    a, b = value
    if core is not None:
        return (a.shape[1], b.shape[1], *core.shape[2:])
    return (a.shape[0], *b.shape[1:])
