"""DoRA (Liu et al., arXiv:2402.09353): the direction of a weight by LoRA, its length apart."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.models.load import dense_weight
from macai.models.lora import LoRALinear


class DoRALinear(LoRALinear):
    """y = m / |W + scale B A| (W x + scale B A x): one length for each row of the weight.

    The norm is no part of the gradient, as in section 4.3 of the paper and in PEFT. It is taken
    without the sum W + scale B A ever being there: |W|² is known, and what A adds to it needs W Aᵀ,
    for which a layer of any number of bits is applied to the rows of A.

    Attributes:
        lora_magnitude_vector: float32 [out], the lengths; |W| at first.
    """

    def __init__(self, linear: nn.Module, **options: Any) -> None:
        """Take what LoRALinear takes."""
        super().__init__(linear, **options)
        rows = dense_weight(linear)
        self._squares = (rows * rows).sum(axis=1)
        self.lora_magnitude_vector = mx.sqrt(self._squares)
        mx.eval(self._squares, self.lora_magnitude_vector)  # so that `rows` is freed

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out], in the type of `x`."""
        y = super().__call__(x)
        if not self.active:
            return y
        ratio = self.ratio().astype(x.dtype)
        if "bias" not in self.linear:
            return y * ratio
        return (y - self.linear.bias) * ratio + self.linear.bias

    def ratio(self) -> mx.array:
        """Return m / |W + scale B A|, float32 [out]; differentiable by m alone."""
        return self.lora_magnitude_vector / mx.stop_gradient(mx.sqrt(self._row_squares()))

    def _row_squares(self) -> mx.array:
        """|W + scale B A|² of each row, float32 [out]."""
        a, b = self.factors()
        wa = self.linear(a)  # A Wᵀ, [rank, out]
        if "bias" in self.linear:
            wa = wa - self.linear.bias
        mixed = (wa.T.astype(mx.float32) * b).sum(axis=1)
        added = ((b @ (a @ a.T)) * b).sum(axis=1)
        squares = self._squares + self.scale * (2 * mixed + self.scale * added)
        return mx.maximum(squares, 1e-24)  # a row of zeros stays one

    def merged_weight(self) -> mx.array:
        """Return the weight that does what this layer does without dropout, float32 [out, in]."""
        return super().merged_weight() * self.ratio()[:, None]
