"""Cross entropy of the learnt tokens only."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.data.batches import Batch
from macai.models.prefix import prefix_caches

Logits = Callable[..., mx.array]
"""(model, ids int32 [B, L], positions int32 [N] into B * L, caches=None) -> logits [N, V] at those
positions, after what the caches hold."""


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


def next_token_loss(model: nn.Module, batch: Batch, logits: Logits) -> mx.array:
    """Cross entropy of predicting each learnt token from those before it.

    Returns:
        The sum over learnt tokens, float32 []; a sum, because the mean of a step is over all its
        micro-batches.
    """
    caches = None if batch.prefix is None else prefix_caches(model, batch.prefix)
    scores = logits(model, batch.ids, batch.positions, caches).astype(mx.float32)
    on_cpu = mx.default_device() == mx.cpu
    cross_entropy = _cross_entropy if on_cpu else nn.losses.cross_entropy
    return (cross_entropy(scores, batch.targets) * batch.weights).sum()


def _cross_entropy(scores: mx.array, targets: mx.array) -> mx.array:
    """float32 [N, V], int32 [N] -> float32 [N], with each exp computed once.

    MLX computes them again for the gradient; on the CPU backend they are a tenth of a small model's
    training step. A GPU computes them faster than it would read them back.
    """
    losses: mx.array = _keeping_exp(scores, targets)[0]  # type: ignore[index]
    return losses


@mx.custom_function
def _keeping_exp(scores: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    top = scores.max(axis=-1, keepdims=True)
    powers = mx.exp(scores - top)
    total = powers.sum(axis=-1, keepdims=True)
    picked = mx.take_along_axis(scores, targets[:, None], axis=-1)
    return (mx.log(total) + top - picked).squeeze(-1), powers, total


@_keeping_exp.vjp
def _cross_entropy_vjp(
    primals: tuple[mx.array, mx.array],
    cotangents: tuple[mx.array, mx.array, mx.array],
    outputs: tuple[mx.array, mx.array, mx.array],
) -> tuple[mx.array, mx.array]:
    """The gradient is softmax(scores), less one at the target."""
    targets, cotangent = primals[1], cotangents[0][:, None]
    _, powers, total = outputs
    gradient = powers * (cotangent / total)
    rows = mx.arange(targets.size)
    return gradient.at[rows, targets].add(-cotangent.squeeze(-1)), mx.zeros_like(targets)


def _whole(model: Any, ids: mx.array, positions: mx.array, caches: Any = None) -> mx.array:
    scores = model(ids) if caches is None else model(ids, cache=caches)
    return scores.reshape(-1, scores.shape[-1])[positions]


def _picked(model: Any, ids: mx.array, positions: mx.array, caches: Any = None) -> mx.array:
    hidden = model.model(ids) if caches is None else model.model(ids, cache=caches)
    hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
    head = model.lm_head if "lm_head" in model else model.model.embed_tokens.as_linear
    return head(hidden)
