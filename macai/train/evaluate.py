"""Loss on a fixed set of examples."""

from collections.abc import Iterator, Sequence

import mlx.nn as nn

from macai.data.batches import in_order, make_batch
from macai.data.tokens import Example
from macai.train.loss import Logits, loss_value


def mean_loss(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    logits: Logits,
    tokens: int,
    pad_id: int,
    prefix: int = 0,
) -> Iterator[tuple[int, int, float]]:
    """Yield (batches done, of how many, mean cross entropy so far in nats); the last is the result.

    The same examples in the same batches every time, each learnt token with the same weight;
    `tokens` is the padded size of a batch and `prefix` what all rows begin with, as in
    `macai.data.batches`. The model is in evaluation mode meanwhile.
    """
    plans = in_order([e.read_tokens for e in examples], tokens=tokens)
    training = model.training
    model.eval()
    try:
        total, learnt = 0.0, 0
        batches = (make_batch(examples, plan, pad_id=pad_id, prefix=prefix) for plan in plans)
        for done, batch in enumerate(batches, 1):
            total += loss_value(model, batch, logits)
            learnt += batch.learnt_tokens
            yield done, len(plans), total / learnt
    finally:
        model.train(training)
