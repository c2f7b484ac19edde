"""Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): a momentum made orthogonal.

It is for matrices inside the model; embeddings, the head, and vectors get AdamW. A step is scaled
as long as AdamW's usual one, 0.2 sqrt(max(rows, columns)) (Liu et al., arXiv:2502.16982), so one
learning rate serves both. Reads both betas, the first as the momentum, and the weight decay, which
is decoupled; MLX's own Muon would send it through the orthogonalisation.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from macai.train.rules.adamw import adamw
from macai.train.rules.rule import Options, Part, Shapes

_OUTSIDE = ("embed", "lm_head", "wte", "wpe")
_QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at zero: small singular values rise fast
_STEPS = 5


class Muon(optim.Optimizer):
    """W <- (1 - rate decay) W - rate 0.2 sqrt(max(rows, columns)) orthogonal(nesterov(G))."""

    def __init__(self, learning_rate: float, momentum: float, weight_decay: float) -> None:
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)
        self._momentum, self._decay = momentum, weight_decay

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        """Begin with no momentum."""
        state["m"] = mx.zeros_like(parameter)

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]
    ) -> mx.array:
        """Return the matrix after the step."""
        rate, keep = self.learning_rate.astype(gradient.dtype), self._momentum
        state["m"] = keep * state["m"] + (1 - keep) * gradient
        update = orthogonal(keep * state["m"] + (1 - keep) * gradient)
        length = 0.2 * math.sqrt(max(gradient.shape))
        return parameter * (1 - rate * self._decay) - rate * length * update


def orthogonal(matrix: mx.array) -> mx.array:
    """Return [M, N] with singular values near 1, 0.7 to 1.2, along the same vectors.

    Five steps of a quintic Newton-Schulz iteration, which needs products of matrices alone.
    """
    a, b, c = _QUINTIC
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (mx.linalg.norm(x) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def muon(shapes: Shapes, options: Options) -> list[Part]:
    """Return two parts, or the one that is not empty: Muon for matrices, AdamW for the rest."""
    inside = [n for n, shape in shapes.items() if len(shape) == 2 and not _is_outside(n)]
    rest = {n: shape for n, shape in shapes.items() if n not in set(inside)}
    optimizer = Muon(options.learning_rate, options.beta1, options.weight_decay)
    parts = [
        Part(name="matrices", arrays=tuple(inside), optimizer=optimizer, elementwise=False),
        *(adamw(rest, options) if rest else ()),
    ]
    return [part for part in parts if part.arrays]


def _is_outside(name: str) -> bool:
    """Whether it is an embedding's or the head's own weight; a LoRA of the head is inside."""
    path, _, leaf = name.rpartition(".")
    return leaf == "weight" and any(word in path.rpartition(".")[2] for word in _OUTSIDE)
