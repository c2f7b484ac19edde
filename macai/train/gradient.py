"""Loss and gradient of the parts of a step, as sums over tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from macai.data.batches import Batch
from macai.models.arrays import named_arrays
from macai.models.recompute import is_recomputed
from macai.train.chunked import pieces
from macai.train.loss import (
    Logits,
    cross_entropy,
    head_of,
    hidden_of,
    next_token_loss,
    rows_of,
)
from macai.train.optimizer import joined
from macai.train.rewards import Rewards

AnyBatch = TypeVar("AnyBatch")


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
        rewards: Of losses of two answers.
    """

    loss: float
    vector: mx.array
    learnt_tokens: int
    real_tokens: int
    processed_tokens: int
    peak_memory_bytes: int
    rewards: Rewards | None = None

    def __add__(self, other: "Sums") -> "Sums":
        """Return what the parts of two processes come to."""
        names = [f.name for f in fields(Sums) if f.name != "rewards"]
        both = [sums.rewards for sums in (self, other) if sums.rewards]
        return Sums(
            **{name: getattr(self, name) + getattr(other, name) for name in names},
            rewards=both[0] + both[1] if len(both) == 2 else None,
        )


def add_up(
    model: nn.Module,
    parts: Iterable[tuple[int, Callable[[], AnyBatch]]],
    seed: int,
    *,
    step: Callable[[AnyBatch], tuple[Any, Any]],
    count: Callable[[AnyBatch], tuple[int, int, int]],
) -> Sums:
    """Compute parts of a step one after the other and add them up.

    Args:
        model: What is trained; tracing leaves its own arrays in it, which are taken out again.
        parts: At least one; its number in the step and what makes it.
        seed: Of the step. With a part's number it seeds the dropout: no matter who computes it.
        step: Returns a batch's loss, and its gradients in the order of the parameters.
        count: Returns what a batch adds to learnt, real and processed tokens.
    """
    parameters = model.trainable_parameters()
    total, grads, counts = 0.0, None, [0, 0, 0]
    for number, make in parts:
        batch = make()
        mx.random.seed(seed + number)
        loss, new = step(batch)
        model.update(parameters)
        grads = new if grads is None else tree_map(mx.add, grads, new)
        mx.eval(loss, grads)
        total += float(loss)
        counts = [a + b for a, b in zip(counts, count(batch), strict=True)]
    vector = joined(grads)
    mx.eval(vector)
    learnt, real, processed = counts
    return Sums(
        loss=total,
        vector=vector,
        learnt_tokens=learnt,
        real_tokens=real,
        processed_tokens=processed,
        peak_memory_bytes=mx.get_peak_memory(),
    )


class Gradient:
    """Computes `Sums` in this process.

    On a GPU forward and backward pass are compiled, once for each shape of a batch: handing out
    thousands of small operations one by one would keep a fast one waiting.
    """

    def __init__(self, model: nn.Module, logits: Logits, *, label_smoothing: float = 0.0) -> None:
        self._model = model
        self._logits = logits
        self._smoothing = label_smoothing
        self._by_mlx = nn.value_and_grad(model, partial(next_token_loss, logits=logits))
        state = [model.state, mx.random.state]
        self._compiled = mx.compile(self._in_one_pass, inputs=state, outputs=[mx.random.state])
        self._on_cpu = mx.default_device() == mx.cpu
        probe = mx.zeros((1, 1), mx.int32), mx.zeros(1, mx.int32)
        hidden = logits.hidden(model, *probe, None)  # not evaluated
        self._width, self._dtype = hidden.shape[-1], hidden.dtype

    def __call__(self, parts: Iterable[tuple[int, Callable[[], Batch]]], seed: int) -> Sums:
        """Compute the parts one after the other and add them up: see `add_up`."""

        def count(batch: Batch) -> tuple[int, int, int]:
            return batch.learnt_tokens, batch.real_tokens, batch.processed_tokens

        return add_up(self._model, parts, seed, step=self._step, count=count)

    def _step(self, batch: Batch) -> tuple[Any, Any]:
        if self._on_cpu:
            return self._in_two_passes(batch)
        one_pass = self._in_one_pass if is_recomputed(self._model) else self._compiled
        return one_pass(batch.prefix, batch.ids, batch.positions, batch.targets, batch.weights)

    def _in_one_pass(
        self,
        prefix: mx.array | None,
        ids: mx.array,
        positions: mx.array,
        targets: mx.array,
        weights: mx.array,
    ) -> tuple[mx.array, Any]:
        """Return the loss and the gradients, as MLX differentiates; see Batch for the arrays."""
        batch = Batch(prefix, ids, positions, targets, weights, learnt_tokens=0, real_tokens=0)
        loss, grads = self._by_mlx(self._model, batch, label_smoothing=self._smoothing)
        return loss, grads

    def _in_two_passes(self, batch: Batch) -> tuple[float, list[mx.array]]:
        """Return the loss, and the gradients in the order of the parameters, not yet evaluated.

        The backward pass is a promise that starts from `pull`. Its numbers are filled in between
        the passes; the head and the loss, some rows at a time, are not part of it.
        """
        parameters = named_arrays(self._model.trainable_parameters())

        def forward(*arrays: mx.array) -> mx.array:
            self._model.update(tree_unflatten(list(zip(parameters, arrays, strict=True))))
            return hidden_of(self._model, batch, self._logits)

        pull = mx.zeros((batch.targets.size, self._width), self._dtype)
        mx.eval(pull)
        (hidden,), grads = mx.vjp(forward, list(parameters.values()), [pull])
        self._model.update(tree_unflatten(list(parameters.items())))
        mx.eval(hidden)
        loss, own = self._through_head(hidden, batch, pull)
        named = dict(zip(parameters, grads, strict=True))
        return loss, [g + own[name] if name in own else g for name, g in named.items()]

    def _through_head(
        self, hidden: mx.array, batch: Batch, pull: mx.array
    ) -> tuple[float, dict[str, mx.array]]:
        """Return the loss, and the gradients of what is trained in the head; fill in `pull`.

        The gradient of the loss is likewise filled in, by numpy: see `cross_entropy`.
        """
        head, total = head_of(self._model, self._logits), 0.0
        own = {name: mx.zeros(array.shape) for name, array in head.parameters.items()}
        vocabulary = head.vocabulary(hidden)
        for a, b in pieces(len(hidden), vocabulary):
            slope = mx.zeros((b - a, vocabulary))
            mx.eval(slope)
            inputs = [hidden[a:b], *head.parameters.values()]
            (scores,), (back, *grads) = mx.vjp(head, inputs, [slope])
            total += cross_entropy(scores, rows_of(batch, a, b), slope, self._smoothing)
            mx.eval(back, grads)
            np.asarray(pull)[a:b] = np.asarray(back)  # MLX's own memory
            own = {name: own[name] + new for name, new in zip(own, grads, strict=True)}
            mx.eval(own)
        head.restore()
        return total, own
