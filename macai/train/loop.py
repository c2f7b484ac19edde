"""The training loop: an iterator of reports; to evaluate, save and print is up to its caller."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from macai.errors import TrainingError
from macai.models.arrays import scalar
from macai.train.gradient import Sums
from macai.train.optimizer import update

MAX_PARTS = 1 << 12  # of a step; keeps the seeds of two steps apart

Step = TypeVar("Step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one step did.

    Attributes:
        step: Steps done, this one included.
        loss: Mean cross entropy of the learnt tokens, in nats.
        grad_norm: Global L2 norm of the gradient before clipping.
        real_tokens: Tokens of the rows, as the data has them.
        processed_tokens: All tokens computed: padding included, but what all rows begin with once a
            part, and what comes after a row's last learnt token not at all.
        seconds: Wall time of the step, making its batches included.
        peak_memory_bytes: The most that MLX held so far, in all processes of the run.
        rewards: Of losses of two answers: see `macai.train.rewards.Rewards.means`.
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
    rewards: dict[str, float] = field(default_factory=dict)


def train(
    model: nn.Module,
    optimizer: optim.Optimizer,
    steps: Iterable[Step],
    *,
    gradient: Callable[[Step, int], Sums],
    rate: Callable[[int], float],
    max_grad_norm: float,
    seed: int,
    first_step: int = 0,
) -> Iterator[Report]:
    """Take one optimiser step for each item of `steps` and report it.

    Losses and gradients of a step's parts are sums over tokens and divided once by the learnt
    tokens of the whole step, so cutting a step differently does not change it.

    Args:
        model: Its trainable parameters are updated in place.
        optimizer: Initialised with `macai.train.optimizer`; its learning rate is set at every step.
        steps: What `gradient` makes a step of.
        gradient: (step, seed) -> its sums, with the model's parameters as they are when called.
        rate: Learning rate by step, counted from 0.
        max_grad_norm: The gradient is scaled down to this norm; 0 leaves it alone.
        seed: With the step's number seeds its dropout; no other random state exists.
        first_step: The number of the first step: where a resumed run goes on.

    Raises:
        TrainingError: the loss or the gradient is not finite; the model keeps its last good state.
    """
    model.train()
    for step, what in enumerate(steps, first_step):
        began = time.perf_counter()
        sums = gradient(what, (seed << 32) + step * MAX_PARTS)
        learnt = sums.learnt_tokens
        loss, grad_norm = sums.loss / learnt, scalar(mx.linalg.norm(sums.vector)) / learnt
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise TrainingError(
                f"step {step + 1}: the loss is {loss}, the gradient's norm {grad_norm}",
                hint="lower optimizer.learning_rate; the last checkpoint is intact",
            )
        factor = 1 / learnt
        if max_grad_norm and grad_norm > max_grad_norm:
            factor *= max_grad_norm / grad_norm
        optimizer.learning_rate = rate(step)
        update(optimizer, model, sums.vector * factor)
        mx.eval(model.trainable_parameters(), optimizer.state)
        report = Report(
            step=step + 1,
            loss=loss,
            learning_rate=rate(step),
            grad_norm=grad_norm,
            learnt_tokens=learnt,
            real_tokens=sums.real_tokens,
            processed_tokens=sums.processed_tokens,
            seconds=time.perf_counter() - began,
            peak_memory_bytes=max(sums.peak_memory_bytes, mx.get_peak_memory()),
            rewards=sums.rewards.means() if sums.rewards else {},
        )
        del sums  # or its gradient would stay until the next one is there
        yield report
