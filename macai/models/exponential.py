"""exp, and the attention made of it, without the C library's exp: for the CPU backend.

There MLX calls exp once an element, 12 to 17 ns each. Additions and products are vectorised: the
fifteen that take its place cost a third of it.
"""

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx

Change = Callable[[mx.array], mx.array]

LEAST = 1 << 14  # numbers: of fewer, handing out a dozen primitives takes longer than they do
_LOG2_E = 1.4426950408889634
# Of 2**f for f in -0.5 to 0.5, within 1e-7 of it: interpolated at Chebyshev's points.
_POWERS = (
    1.0000000754548972,
    0.6931471880262273,
    0.2402210748530968,
    0.05550357114222094,
    0.009676031918255982,
    0.001339086336353527,
)
_NO_DIGITS = 1.5 * 2**23  # float32 has none after the point there, so adding it rounds
_LEAST_POWER = -100  # of a weight: 1e-30, whose products are still no denormals, which are slow


def exp(x: mx.array) -> mx.array:
    """Return mx.exp(x) of float32 `x`, to a relative error of 1e-6, for x from -86 to 87.

    Below and above it is that of the ends.
    """
    return _two_to(mx.clip(x * _LOG2_E, -125, 126))


def as_is(x: mx.array) -> mx.array:
    """Change nothing."""
    return x


def _two_to(power: mx.array) -> mx.array:
    """Return 2 ** power, float32, for -125 to 126."""
    shifted = power + _NO_DIGITS
    part = power - (shifted - _NO_DIGITS)
    value = part * _POWERS[-1] + _POWERS[-2]
    for coefficient in _POWERS[-3::-1]:
        value = value * part + coefficient
    # The whole part of the power is in the lowest bits of `shifted`: added to IEEE 754's exponent.
    return mx.view(mx.view(value, mx.int32) + (mx.view(shifted, mx.int32) << 23), mx.float32)


def attend(q: mx.array, k: mx.array, v: mx.array, hide: Change, unhide: Change) -> mx.array:
    """Return softmax(hide(q @ k.T)) @ v, float32 [..., T, D]; its gradient is in closed form.

    Args:
        q: [..., T, D], already scaled.
        k: [..., S, D].
        v: [..., S, D].
        hide: Changes the scores [..., T, S], float32, by adding constants, or by replacing what is
            not to be seen with a very low number.
        unhide: Its gradient, [..., T, S] -> [..., T, S]. Where all rows see something it may leave
            out the zeros of what was replaced, whose weights are nothing.
    """

    @mx.custom_function
    def attended(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        scores = hide(q @ k.swapaxes(-1, -2))
        powers = (scores - scores.max(axis=-1, keepdims=True)) * _LOG2_E
        powers = _two_to(mx.maximum(powers, _LEAST_POWER))
        inverse = 1 / powers.sum(axis=-1, keepdims=True)
        return (powers @ v) * inverse, powers, inverse

    @attended.vjp
    def _(
        primals: tuple[mx.array, ...],
        cotangents: tuple[mx.array, ...],
        outputs: tuple[mx.array, ...],
    ) -> tuple[mx.array, mx.array, mx.array]:
        (q, k, v), (made, powers, inverse) = primals, outputs
        along = (cotangents[0] * made).sum(axis=-1, keepdims=True) * inverse
        scaled = cotangents[0] * inverse
        pull = unhide(powers * (scaled @ v.swapaxes(-1, -2) - along))
        return pull @ k, pull.swapaxes(-1, -2) @ q, powers.swapaxes(-1, -2) @ scaled

    return cast(mx.array, cast(Any, attended(q, k, v))[0])
