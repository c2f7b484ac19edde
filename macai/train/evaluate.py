"""Loss on a fixed set of examples."""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from macai.data.batches import Batch, in_order, make_batch
from macai.data.tokens import Example
from macai.models.arrays import scalar
from macai.models.workers import Workers
from macai.train.loss import Logits, next_token_loss


def mean_loss(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    logits: Logits,
    tokens: int,
    pad_id: int,
    pool: Workers | None = None,
) -> Iterator[tuple[int, int, float]]:
    """Yield (batches done, of how many, mean cross entropy so far in nats); the last is the result.

    The same examples in the same batches every time, each learnt token with the same weight;
    `tokens` is the padded size of a batch. The model is in evaluation mode meanwhile.
    """
    pool = pool or Workers(None)

    def measure(batch: Batch) -> tuple[mx.array, mx.array]:
        return next_token_loss(model, batch, logits), batch.weights.sum()

    plans = in_order([len(e.ids) for e in examples], tokens=tokens)
    training = model.training
    model.eval()
    try:
        total, learnt = 0.0, 0
        batches = (make_batch(examples, plan, pad_id=pad_id) for plan in plans)
        for done, (loss, count) in enumerate(pool.map(measure, batches), 1):
            total += scalar(loss)
            learnt += int(scalar(count))
            yield done, len(plans), total / learnt
    finally:
        model.train(training)
