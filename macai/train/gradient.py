"""Loss and gradient of the parts of a step, as sums over tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_unflatten

from macai.data.batches import Batch
from macai.models.arrays import named_arrays
from macai.train.loss import Logits, cross_entropy, next_token_loss, scores_of
from macai.train.optimizer import joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What some parts of a step come to.

    Attributes:
        loss: Sum over the learnt tokens of the cross entropy, in nats.
        vector: Gradient of `loss`, float32 [n] in the order of `macai.train.optimizer.joined`.
        learnt_tokens: How many tokens `loss` is the sum over.
        real_tokens: Tokens of the rows, as the data has them.
        processed_tokens: Tokens computed, padding included.
        peak_memory_bytes: The most that MLX held so far, in all processes that computed.
    """

    loss: float
    vector: mx.array
    learnt_tokens: int
    real_tokens: int
    processed_tokens: int
    peak_memory_bytes: int

    def __add__(self, other: "Sums") -> "Sums":
        """Return what the parts of two processes come to."""
        names = [f.name for f in fields(Sums)]
        return Sums(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Gradient:
    """Computes `Sums` in this process."""

    def __init__(self, model: nn.Module, logits: Logits, *, label_smoothing: float = 0.0) -> None:
        self._model = model
        self._logits = logits
        self._smoothing = label_smoothing
        self._by_mlx = nn.value_and_grad(model, next_token_loss)
        self._on_cpu = mx.default_device() == mx.cpu
        probe = mx.zeros((1, 1), mx.int32), mx.zeros(1, mx.int32)
        self._vocabulary = logits(model, *probe).shape[-1]  # not evaluated

    def __call__(self, parts: Iterable[tuple[int, Callable[[], Batch]]], seed: int) -> Sums:
        """Compute the parts one after the other and add them up.

        Args:
            parts: At least one; its number in the step and what makes it, one after the other.
            seed: Of the step. With a part's number it seeds the dropout: no matter who computes it.
        """
        parameters = self._model.trainable_parameters()
        total, grads, batches = 0.0, None, list[Batch]()
        for number, make in parts:
            batch = make()
            mx.random.seed(seed + number)
            if self._on_cpu:
                loss, new = self._in_two_passes(batch)
            else:
                loss, new = self._by_mlx(self._model, batch, self._logits, self._smoothing)
            self._model.update(parameters)  # tracing left its own arrays in the model
            grads = new if grads is None else tree_map(mx.add, grads, new)
            mx.eval(loss, grads)
            total += float(loss)
            batches.append(batch)
        vector = joined(grads)
        mx.eval(vector)
        return Sums(
            loss=total,
            vector=vector,
            learnt_tokens=sum(batch.learnt_tokens for batch in batches),
            real_tokens=sum(batch.real_tokens for batch in batches),
            processed_tokens=sum(batch.processed_tokens for batch in batches),
            peak_memory_bytes=mx.get_peak_memory(),
        )

    def _in_two_passes(self, batch: Batch) -> tuple[float, list[mx.array]]:
        """Return the loss, and the gradients in the order of the parameters, not yet evaluated.

        The backward pass is a promise that starts from `slope`. Its numbers are filled in between
        the passes, by numpy; within MLX's gradient that would keep it from reusing memory.
        """
        parameters = named_arrays(self._model.trainable_parameters())

        def forward(*arrays: mx.array) -> mx.array:
            self._model.update(tree_unflatten(list(zip(parameters, arrays, strict=True))))
            return scores_of(self._model, batch, self._logits)

        slope = mx.zeros((batch.targets.size, self._vocabulary))
        mx.eval(slope)
        (scores,), grads = mx.vjp(forward, list(parameters.values()), [slope])
        return cross_entropy(scores, batch, slope, self._smoothing), grads
