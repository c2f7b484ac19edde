"""Loss on a fixed set of examples."""

from collections.abc import Iterator, Sequence
from functools import partial

import mlx.nn as nn

from macai.data.batches import in_order
from macai.data.tokens import Example
from macai.train.group import Group
from macai.train.loss import Logits
from macai.train.objective import TOKENS, Objective


def mean_loss(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    logits: Logits,
    tokens: int,
    pad_id: int,
    prefix: int = 0,
    objective: Objective = TOKENS,
    group: Group | None = None,
) -> Iterator[tuple[int, int, float]]:
    """Yield (batches done, of how many, mean loss so far in nats); the last is the result.

    The same examples in the same batches every time, each learnt token with the same weight;
    `tokens` is the padded size of a batch and `prefix` what all rows begin with, as in
    `macai.data.batches`. The model is in evaluation mode meanwhile.
    In a group each process has a share of the batches, and all the same result.
    """
    plans = in_order(objective.lengths(examples), tokens=tokens)
    if group is not None:
        plans = plans[group.rank :: group.size]
    training = model.training
    model.eval()
    try:
        total, learnt = 0.0, 0
        make = partial(objective.batch, examples, pad_id=pad_id, prefix=prefix)
        batches = (make(plan) for plan in plans)
        for done, batch in enumerate(batches, 1):
            value, over = objective.value(model, batch, logits)
            total += value
            learnt += over
            yield done, len(plans), total / learnt
        if group is not None:
            group.agree()
            total = group.number(total)
            (learnt,) = group.counts([learnt])
            yield len(plans), len(plans), total / learnt
    finally:
        model.train(training)
