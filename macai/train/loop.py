"""The training loop: an iterator of reports; to evaluate, save and print is up to its caller."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from macai.data.batches import Batch
from macai.errors import TrainingError
from macai.models.arrays import scalar
from macai.train.loss import Logits, next_token_loss
from macai.train.optimizer import joined, update

MAX_MICRO_BATCHES = 1 << 12  # in a step; keeps the seeds of two steps apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one step did.

    Attributes:
        step: Steps done, this one included.
        loss: Mean cross entropy of the learnt tokens, in nats.
        grad_norm: Global L2 norm of the gradient before clipping.
        real_tokens: Tokens of the rows, as the data has them.
        processed_tokens: All tokens computed: padding included, but what all rows begin with once a
            micro-batch, and what comes after a row's last learnt token not at all.
        seconds: Wall time of the step, making its batches included.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    learnt_tokens: int
    real_tokens: int
    processed_tokens: int
    seconds: float
    peak_memory_bytes: int


def train(
    model: nn.Module,
    optimizer: optim.Optimizer,
    steps: Iterable[Sequence[Callable[[], Batch]]],
    *,
    logits: Logits,
    rate: Callable[[int], float],
    max_grad_norm: float,
    seed: int,
    first_step: int = 0,
) -> Iterator[Report]:
    """Take one optimiser step for each item of `steps` and report it.

    Losses and gradients of a step's micro-batches are sums over tokens and divided once by the
    learnt tokens of the whole step, so cutting a step differently does not change it.

    Args:
        model: Its trainable parameters are updated in place.
        optimizer: Initialised with `macai.train.optimizer`; its learning rate is set at every step.
        steps: For each step its micro-batches, made when called.
        logits: From `macai.train.loss.logits_for`.
        rate: Learning rate by step, counted from 0.
        max_grad_norm: The gradient is scaled down to this norm; 0 leaves it alone.
        seed: With the step's number seeds its dropout; no other random state exists.
        first_step: The number of the first step: where a resumed run goes on.

    Raises:
        TrainingError: the loss or the gradient is not finite; the model keeps its last good state.
    """
    gradient = nn.value_and_grad(model, next_token_loss)
    model.train()
    for step, micro_batches in enumerate(steps, first_step):
        began = time.perf_counter()
        batches = [make() for make in micro_batches]
        learnt = sum(batch.learnt_tokens for batch in batches)
        step_seed = (seed << 32) + step * MAX_MICRO_BATCHES
        total, grads = _accumulate(gradient, model, batches, logits, step_seed)
        vector = joined(grads)
        loss, grad_norm = scalar(total) / learnt, scalar(mx.linalg.norm(vector)) / learnt
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise TrainingError(
                f"step {step + 1}: the loss is {loss}, the gradient's norm {grad_norm}",
                hint="lower optimizer.learning_rate; the last checkpoint is intact",
            )
        factor = 1 / learnt
        if max_grad_norm and grad_norm > max_grad_norm:
            factor *= max_grad_norm / grad_norm
        optimizer.learning_rate = rate(step)
        update(optimizer, model, vector * factor)
        mx.eval(model.trainable_parameters(), optimizer.state)
        yield Report(
            step=step + 1,
            loss=loss,
            learning_rate=rate(step),
            grad_norm=grad_norm,
            learnt_tokens=learnt,
            real_tokens=sum(batch.real_tokens for batch in batches),
            processed_tokens=sum(batch.processed_tokens for batch in batches),
            seconds=time.perf_counter() - began,
            peak_memory_bytes=mx.get_peak_memory(),
        )


def _accumulate(
    gradient: Callable[..., tuple[mx.array, Any]],
    model: nn.Module,
    batches: Sequence[Batch],
    logits: Logits,
    seed: int,
) -> tuple[mx.array, Any]:
    """Return the sums over the micro-batches of the loss and of the gradients, evaluated."""
    parameters = model.trainable_parameters()
    total, grads = mx.array(0.0), None
    for number, batch in enumerate(batches):
        mx.random.seed(seed + number)
        loss, new = gradient(model, batch, logits)
        model.update(parameters)  # tracing left its own arrays in the model
        total = total + loss
        grads = new if grads is None else tree_map(mx.add, grads, new)
        mx.eval(total, grads)
    return total, grads
