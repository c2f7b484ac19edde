"""Cross entropy of the learnt tokens only."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.data.batches import Batch
from macai.models.arrays import scalar
from macai.models.prefix import prefix_caches
from macai.train.chunked import Head, pieces, summed_loss

HEAD, EMBEDDING = "lm_head", "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class Logits:
    """A way from tokens to logits, in two parts: the head alone can go some rows at a time.

    Attributes:
        hidden: (model, ids int32 [B, L], positions int32 [N] into B * L, caches or None) -> what
            the head takes at those positions, after what the caches hold, [N, D].
        head: (model, [n, D]) -> logits [n, V].
        module: (model) -> the path of the module that is the head; None for no module.
    """

    hidden: Callable[[Any, mx.array, mx.array, Any], mx.array]
    head: Callable[[Any, mx.array], mx.array]
    module: Callable[[Any], str | None]

    def __call__(
        self, model: nn.Module, ids: mx.array, positions: mx.array, caches: Any = None
    ) -> mx.array:
        """Return the logits [N, V]."""
        return self.head(model, self.hidden(model, ids, positions, caches))


def logits_for(model: nn.Module) -> Logits:
    """Return the cheapest way to this model's logits that gives the model's own numbers.

    The output head costs as much as a fifth of a small model, and most tokens are not learnt; so it
    is applied to learnt positions only, unless a probe shows that this model does more after its
    last layer than apply the head.
    """
    probe = mx.arange(1, 9).reshape(2, 4)
    everywhere = mx.arange(8)
    whole = _whole(model, probe, everywhere)
    try:
        picked = _picked(model, probe, everywhere)
    except (AttributeError, TypeError):
        return _whole
    same = picked.shape == whole.shape and mx.array_equal(picked, whole).item()
    return _picked if same else _whole


def next_token_loss(
    model: nn.Module, batch: Batch, logits: Logits, label_smoothing: float = 0.0
) -> mx.array:
    """Cross entropy of predicting each learnt token from those before it.

    With label smoothing a token's loss is for so large a share the mean of those of all tokens.

    Returns:
        The sum over learnt tokens, float32 []; a sum, because the mean of a step is over all its
        micro-batches.
    """
    hidden = hidden_of(model, batch, logits)
    head = head_of(model, logits)
    return summed_loss(head, hidden, batch.targets, batch.weights, label_smoothing)


def hidden_of(model: nn.Module, batch: Batch, logits: Logits) -> mx.array:
    """Return what the head makes the logits of that `batch.targets` are compared with, [N, D]."""
    caches = None if batch.prefix is None else prefix_caches(model, batch.prefix)
    return logits.hidden(model, batch.ids, batch.positions, caches)


def head_of(model: nn.Module, logits: Logits) -> Head:
    """Return the head of this model, as it is now."""
    return Head(model, logits.head, logits.module(model))


def scores_of(model: nn.Module, batch: Batch, logits: Logits) -> mx.array:
    """Return the logits that `batch.targets` are compared with, float32 [N, V]."""
    return logits.head(model, hidden_of(model, batch, logits)).astype(mx.float32)


def loss_value(model: nn.Module, batch: Batch, logits: Logits) -> float:
    """Return `next_token_loss`, evaluated."""
    hidden, head, total = hidden_of(model, batch, logits), head_of(model, logits), 0.0
    mx.eval(hidden)
    for a, b in pieces(len(hidden), head.vocabulary(hidden)):
        scores, part = head(hidden[a:b]), rows_of(batch, a, b)
        if mx.default_device() == mx.cpu:
            total += cross_entropy(scores, part)
        else:
            losses = nn.losses.cross_entropy(scores, part.targets) * part.weights
            total += scalar(losses.sum())
    return total


def rows_of(batch: Batch, begin: int, end: int) -> Batch:
    """Return the batch with some of what must be predicted; its ids stay."""
    return replace(batch, targets=batch.targets[begin:end], weights=batch.weights[begin:end])


def token_losses(scores: mx.array, batch: Batch) -> mx.array:
    """Return the cross entropy of each token, padding included, float32 [N]."""
    if mx.default_device() != mx.cpu:
        return nn.losses.cross_entropy(scores, batch.targets)
    mx.eval(scores)
    values, targets = np.asarray(scores), np.asarray(batch.targets)
    with np.errstate(all="ignore"):
        top = values.max(axis=-1)
        total = np.exp(values - top[:, None]).sum(axis=-1)
        return mx.array(np.log(total) + top - values[np.arange(len(targets)), targets])


def cross_entropy(
    scores: mx.array,
    batch: Batch,
    slope: mx.array | None = None,
    label_smoothing: float = 0.0,
) -> float:
    """Return `next_token_loss` of these scores, computed by numpy: for the CPU backend.

    MLX calls the C library's exp once an element there, 12 ns each, and does it again for the
    gradient; numpy's takes one. It also sums in pairs, so that a sum over a vocabulary is closer.

    Args:
        scores: float32 [N, V].
        batch: Its targets and weights are read.
        slope: float32 [N, V], evaluated; is given the gradient with respect to `scores`.
        label_smoothing: See `next_token_loss`.
    """
    mx.eval(scores)
    values, targets, weights = map(np.asarray, (scores, batch.targets, batch.weights))
    powers = np.empty_like(values) if slope is None else np.asarray(slope)  # MLX's own memory
    rows = np.arange(len(targets))
    with np.errstate(all="ignore"):  # what is not finite stops the run elsewhere
        top = values.max(axis=-1)
        np.subtract(values, top[:, None], out=powers)
        np.exp(powers, out=powers)
        total = powers.sum(axis=-1)
        losses = np.log(total) + top - (1 - label_smoothing) * values[rows, targets]
        if slope is not None:  # softmax(scores), less one at the target
            powers *= (weights / total)[:, None]
            powers[rows, targets] -= weights * (1 - label_smoothing)
        if label_smoothing:
            losses -= label_smoothing * values.mean(axis=-1)
            if slope is not None:
                powers -= (weights * (label_smoothing / values.shape[-1]))[:, None]
        return float((losses * weights).sum())


def _all_logits(model: Any, ids: mx.array, positions: mx.array, caches: Any = None) -> mx.array:
    scores = model(ids) if caches is None else model(ids, cache=caches)
    return scores.reshape(-1, scores.shape[-1])[positions]


def _last_states(model: Any, ids: mx.array, positions: mx.array, caches: Any = None) -> mx.array:
    hidden = model.model(ids) if caches is None else model.model(ids, cache=caches)
    return hidden.reshape(-1, hidden.shape[-1])[positions]


def _apply_head(model: Any, hidden: mx.array) -> mx.array:
    head = model.lm_head if HEAD in model else model.model.embed_tokens.as_linear
    return head(hidden)


_whole = Logits(_all_logits, lambda model, scores: scores, lambda model: None)
_picked = Logits(_last_states, _apply_head, lambda model: HEAD if HEAD in model else EMBEDDING)
