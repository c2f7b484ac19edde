"""The output head and its cross entropy some rows at a time.

The logits of all learnt tokens, and their gradient as large again, are often most of the memory of
a step: 2048 rows of a vocabulary of 152,000 are 1.2 GB each in float32. Here those of one piece are
alive at a time, and what is left of them is the gradient with respect to the head's input.
"""

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.models.arrays import named_arrays

PIECE_BYTES = 64 << 20  # of float32 logits: fewer rows at a time would read the head too often


class Head:
    """The output head of a model, and what of it is trained.

    Attributes:
        parameters: The trainable arrays in it, by their path in the model.
    """

    def __init__(
        self, model: nn.Module, apply: Callable[[Any, mx.array], mx.array], module: str | None
    ) -> None:
        """Take the model, what applies its head, and the path of the head in it."""
        self._model = model
        self._apply = apply
        trained = named_arrays(model.trainable_parameters()) if module else {}
        self.parameters = {n: a for n, a in trained.items() if n.startswith(f"{module}.")}

    def __call__(self, hidden: mx.array, *arrays: mx.array) -> mx.array:
        """Return the logits of some rows, float32 [n, V].

        `arrays` stand for `parameters` from then on, until `restore`.
        """
        if arrays:
            self._put(dict(zip(self.parameters, arrays, strict=True)))
        return self._apply(self._model, hidden).astype(mx.float32)

    def restore(self) -> None:
        """Give the model its own arrays again."""
        self._put(self.parameters)

    def vocabulary(self, hidden: mx.array) -> int:
        """Return how many logits a row has; nothing is computed."""
        return self(hidden[:1]).shape[-1]

    def _put(self, arrays: dict[str, mx.array]) -> None:
        self._model.update(tree_unflatten(list(arrays.items())))


def pieces(rows: int, vocabulary: int) -> list[tuple[int, int]]:
    """Cut so many rows into as few pieces as PIECE_BYTES allow, of about the same size."""
    most = max(1, PIECE_BYTES // (4 * vocabulary))
    count = max(1, -(-rows // most))
    return list(pairwise([rows * i // count for i in range(count + 1)]))


def summed_loss(
    head: Head,
    hidden: mx.array,
    targets: mx.array,
    weights: mx.array,
    label_smoothing: float = 0.0,
) -> mx.array:
    """Return the weighted sum of the cross entropies, float32 []; its gradient is piecewise too.

    The forward pass computes the gradient as well: the logits would have to be computed again later
    (as in Liger kernels, Hsu et al., arXiv:2410.10989). Whoever does not ask for it computes more
    than is needed.

    Args:
        head: Its parameters get gradients.
        hidden: What the head takes, [N, D]; gets a gradient.
        targets: int32 [N].
        weights: float32 [N]; constants.
        label_smoothing: See `macai.train.loss.next_token_loss`.
    """
    cuts = pieces(len(hidden), head.vocabulary(hidden))
    loss_of = _cross_entropy(label_smoothing)

    def piece(rows: mx.array, arrays: list[mx.array], a: int, b: int) -> mx.array:
        return loss_of(head(rows, *arrays), targets[a:b], weights[a:b])[0]

    @mx.custom_function
    def summed(hidden: mx.array, *arrays: mx.array) -> tuple[mx.array, ...]:
        slopes: list[mx.array] = []
        total = mx.zeros(())
        own = [mx.zeros(array.shape) for array in arrays]
        for a, b in cuts:
            # Not before the last piece is done, or the logits of all would be alive at once.
            rows = mx.depends([hidden[a:b]], [total, *slopes[-1:], *own])[0]
            loss, (slope, grads) = mx.value_and_grad(piece, (0, 1))(rows, list(arrays), a, b)
            total = total + loss
            slopes.append(slope)
            own = [sums + new for sums, new in zip(own, grads, strict=True)]
        head.restore()
        typed = [sums.astype(array.dtype) for sums, array in zip(own, arrays, strict=True)]
        return total, mx.concatenate(slopes), *typed

    @summed.vjp
    def _(
        primals: Any, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        return tuple((cotangents[0] * out).astype(out.dtype) for out in outputs[1:])

    found = cast(tuple[mx.array, ...], summed(hidden, *head.parameters.values()))
    return found[0]


@functools.cache
def _cross_entropy(label_smoothing: float) -> Callable[..., tuple[mx.array, ...]]:
    """Return (scores float32 [n, V], targets, weights) -> the weighted sum, and its parts."""
    share = 1 - label_smoothing

    @mx.custom_function
    def summed(
        scores: mx.array, targets: mx.array, weights: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        total = mx.logsumexp(scores, axis=-1)
        losses = total - share * mx.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
        if label_smoothing:
            losses = losses - label_smoothing * scores.mean(axis=-1)
        return (losses * weights).sum(), losses, total

    @summed.vjp
    def _(
        primals: tuple[mx.array, ...],
        cotangents: tuple[mx.array, ...],
        outputs: tuple[mx.array, ...],
    ) -> tuple[mx.array, ...]:
        (scores, targets, weights), (_, losses, total) = primals, outputs
        pull = (cotangents[0] * weights)[:, None]
        wanted = mx.arange(scores.shape[-1]) == targets[:, None]
        slope = mx.exp(scores - total[:, None]) - mx.where(wanted, share, 0.0)
        if label_smoothing:
            slope = slope - label_smoothing / scores.shape[-1]
        return slope * pull, mx.zeros_like(targets), cotangents[0] * losses

    return cast(Callable[..., tuple[mx.array, ...]], summed)
