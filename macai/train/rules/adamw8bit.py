"""AdamW whose two moments are stored in 8 bits, as in Dettmers et al., arXiv:2110.02861.

The vector is cut into blocks of 256, each with its largest magnitude in float32: 2.03 bytes a
number in place of 8. A code stands for a power of its share of that largest one, 2 for the mean and
4 for the mean of squares, so that small numbers keep digits: the least that is not zero is 6e-5
and 2e-10. (The paper has a table of 256 numbers; a power needs no search.)

Rounding to nearest would freeze a mean: with beta 0.999 it falls by a thousandth a step, and two
codes are a percent apart. So the codes are rounded up or down by a threshold that runs through
[0, 1) evenly from step to step, the same at every number: the error averages out, and no random
state is needed.
"""

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from macai.train.rules.rule import Options, Part, Shapes

BLOCK = 256
EPSILON = 1e-8
_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread the most evenly


class AdamW8bit(optim.Optimizer):
    """AdamW over a vector, with bias correction; reads and writes its moments as codes."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._maybe_schedule("learning_rate", options.learning_rate)
        self._options = options

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        """Begin with both moments zero."""
        blocks = -(-parameter.size // BLOCK)
        for name, kind in (("m", mx.int8), ("v", mx.uint8)):
            state[name] = mx.zeros((blocks, BLOCK), kind)
            state[f"{name}_max"] = mx.zeros((blocks, 1))

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]
    ) -> mx.array:
        """Return the vector after the step."""
        options, rate = self._options, self.learning_rate
        room = state["m"].size - gradient.size
        g = mx.pad(gradient.astype(mx.float32), (0, room)).reshape(-1, BLOCK)
        step = self.step.astype(mx.float32)
        m = options.beta1 * _signed(state["m"], state["m_max"]) + (1 - options.beta1) * g
        v = options.beta2 * _unsigned(state["v"], state["v_max"]) + (1 - options.beta2) * g * g
        correction = mx.sqrt(1 - options.beta2**step) / (1 - options.beta1**step)
        update = correction * m / (mx.sqrt(v) + EPSILON)
        threshold = (step * _GOLDEN) % 1
        state["m"], state["m_max"] = _signed_codes(m, threshold)
        state["v"], state["v_max"] = _unsigned_codes(v, threshold)
        update = update.reshape(-1)[: gradient.size]
        return parameter * (1 - rate * options.weight_decay) - rate * update


def _signed(codes: mx.array, largest: mx.array) -> mx.array:
    share = codes.astype(mx.float32) / 127
    return mx.abs(share) * share * largest


def _signed_codes(values: mx.array, threshold: mx.array) -> tuple[mx.array, mx.array]:
    largest = mx.abs(values).max(axis=1, keepdims=True)
    share = mx.sqrt(mx.abs(values) / mx.maximum(largest, 1e-38))
    return (mx.floor(share * 127 + threshold) * mx.sign(values)).astype(mx.int8), largest


def _unsigned(codes: mx.array, largest: mx.array) -> mx.array:
    return mx.square(mx.square(codes.astype(mx.float32) / 255)) * largest


def _unsigned_codes(values: mx.array, threshold: mx.array) -> tuple[mx.array, mx.array]:
    largest = values.max(axis=1, keepdims=True)
    share = mx.sqrt(mx.sqrt(values / mx.maximum(largest, 1e-38)))
    return mx.floor(share * 255 + threshold).astype(mx.uint8), largest


def adamw8bit(shapes: Shapes, options: Options) -> list[Part]:
    """Return one part: AdamW in 8 bits for every array."""
    optimizer = AdamW8bit(options)
    return [Part(name="all", arrays=tuple(shapes), optimizer=optimizer, elementwise=True)]
