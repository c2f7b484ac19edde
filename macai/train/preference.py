"""The gradient of losses that compare two answers.

The reference is the model itself with its adapter off, so there is no second model in memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.data.pairs import PairBatch
from macai.models.arrays import named_arrays, scalar
from macai.models.lora import adapter_off
from macai.train.gradient import Sums, add_up
from macai.train.loss import Logits, cross_entropy, scores_of, token_losses
from macai.train.losses import Compared, PairLoss
from macai.train.losses.compared import Options
from macai.train.rewards import rewards_of


class PairGradient:
    """Computes the sums of a step: what `macai.train.loop.train` calls.

    `learnt_tokens` of its sums are the answers' twos, which the loss is the mean over.
    """

    def __init__(self, model: nn.Module, logits: Logits, loss: PairLoss, options: Options) -> None:
        self._model, self._logits, self._loss, self._options = model, logits, loss, options
        self._by_mlx = nn.value_and_grad(model, self._whole)
        self._compared: list[Compared] = []  # of a step's parts

    def __call__(self, parts: Iterable[tuple[int, Callable[[], PairBatch]]], seed: int) -> Sums:
        """Compute the parts one after the other and add them up: see `add_up`."""

        def count(batch: PairBatch) -> tuple[int, int, int]:
            return batch.pairs, batch.batch.real_tokens, batch.batch.processed_tokens

        self._compared = []
        sums = add_up(self._model, parts, seed, step=self._step, count=count)
        each = [rewards_of(answers, self._loss, self._options) for answers in self._compared]
        return replace(sums, rewards=reduce(add, each))

    def _step(self, batch: PairBatch) -> tuple[mx.array, Any]:
        """Return the loss, and the gradients in the order of the parameters."""
        reference = reference_of(self._model, batch, self._logits, self._loss)
        if mx.default_device() == mx.cpu:
            return self._in_two_passes(batch, reference)
        (loss, answers), grads = self._by_mlx(self._model, batch, reference)
        self._compared.append(compared_of(batch, answers, reference))
        return loss, grads

    def _whole(
        self, model: nn.Module, batch: PairBatch, reference: mx.array
    ) -> tuple[mx.array, mx.array]:
        scores = scores_of(model, batch.batch, self._logits)
        answers = row_sums(batch, nn.losses.cross_entropy(scores, batch.batch.targets))
        return self._total(answers, batch, reference), answers

    def _in_two_passes(
        self, batch: PairBatch, reference: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """Return what `_step` does, for the CPU backend: see `Gradient`.

        A token's part in the gradient is what its answer's log probability has in the loss: that
        is a weight, and with it the rest is the gradient of a weighted cross entropy.
        """
        parameters = named_arrays(self._model.trainable_parameters())

        def forward(*arrays: mx.array) -> mx.array:
            self._model.update(tree_unflatten(list(zip(parameters, arrays, strict=True))))
            return scores_of(self._model, batch.batch, self._logits)

        vocabulary = self._logits(self._model, mx.zeros((1, 1), mx.int32), mx.zeros(1, mx.int32))
        slope = mx.zeros((batch.batch.targets.size, vocabulary.shape[-1]))
        mx.eval(slope)
        (scores,), grads = mx.vjp(forward, list(parameters.values()), [slope])
        answers = row_sums(batch, token_losses(scores, batch.batch))
        self._compared.append(compared_of(batch, answers, reference))
        loss, pull = mx.value_and_grad(self._total)(answers, batch, reference)
        weights = -pull[batch.rows] * batch.batch.weights
        cross_entropy(scores, replace(batch.batch, weights=weights), slope)
        return loss, grads

    def _total(self, answers: mx.array, batch: PairBatch, reference: mx.array) -> mx.array:
        compared = compared_of(batch, answers, reference)
        return self._loss.each(compared, self._options).sum()


def pair_loss_value(
    model: nn.Module, batch: PairBatch, logits: Logits, loss: PairLoss, options: Options
) -> float:
    """Return the loss, a sum over the twos."""
    reference = reference_of(model, batch, logits, loss)
    answers = row_sums(batch, token_losses(scores_of(model, batch.batch, logits), batch.batch))
    return scalar(loss.each(compared_of(batch, answers, reference), options).sum())


def reference_of(model: nn.Module, batch: PairBatch, logits: Logits, loss: PairLoss) -> mx.array:
    """Return the log probability of each answer without the adapter, float32 [2 P], or zeros."""
    if not loss.needs_reference:
        return mx.zeros(2 * batch.pairs)
    with adapter_off(model):
        answers = row_sums(batch, token_losses(scores_of(model, batch.batch, logits), batch.batch))
        mx.eval(answers)
    return answers


def row_sums(batch: PairBatch, losses: mx.array) -> mx.array:
    """Return the log probability of each answer, float32 [2 P], from the losses of its tokens."""
    return -mx.zeros(2 * batch.pairs).at[batch.rows].add(losses * batch.batch.weights)


def compared_of(batch: PairBatch, answers: mx.array, reference: mx.array) -> Compared:
    """Return both answers of each two, from arrays of all of them, float32 [2 P]."""
    P = batch.pairs
    tokens = mx.zeros(2 * P).at[batch.rows].add(batch.batch.weights)
    return Compared(
        first=answers[:P],
        second=answers[P:],
        first_reference=reference[:P],
        second_reference=reference[P:],
        first_tokens=tokens[:P],
        second_tokens=tokens[P:],
        good=batch.good,
    )
