"""Loss and gradient of the parts of a step, as sums over tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from macai.data.batches import Batch
from macai.models.arrays import scalar
from macai.train.loss import Logits, next_token_loss
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

    def __init__(self, model: nn.Module, logits: Logits) -> None:
        self._model = model
        self._logits = logits
        self._both = nn.value_and_grad(model, next_token_loss)

    def __call__(self, parts: Iterable[tuple[int, Callable[[], Batch]]], seed: int) -> Sums:
        """Compute the parts one after the other and add them up.

        Args:
            parts: At least one; its number in the step and what makes it, one after the other.
            seed: Of the step. With a part's number it seeds the dropout: no matter who computes it.
        """
        parameters = self._model.trainable_parameters()
        loss, grads, batches = mx.array(0.0), None, list[Batch]()
        for number, make in parts:
            batch = make()
            mx.random.seed(seed + number)
            new_loss, new = self._both(self._model, batch, self._logits)
            self._model.update(parameters)  # tracing left its own arrays in the model
            loss = loss + new_loss
            grads = new if grads is None else tree_map(mx.add, grads, new)
            mx.eval(loss, grads)
            batches.append(batch)
        return Sums(
            loss=scalar(loss),
            vector=_evaluated(joined(grads)),
            learnt_tokens=sum(batch.learnt_tokens for batch in batches),
            real_tokens=sum(batch.real_tokens for batch in batches),
            processed_tokens=sum(batch.processed_tokens for batch in batches),
            peak_memory_bytes=mx.get_peak_memory(),
        )


def _evaluated(array: Any) -> mx.array:
    mx.eval(array)
    return array
