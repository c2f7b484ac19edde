"""Random rows, and the batches and steps made of them."""

from functools import partial

import numpy as np

from macai.data.batches import Plan, make_batch
from macai.data.tokens import Example
from macai.train.gradient import Gradient
from macai.train.loss import _picked

PAD = 2


def make_examples(*sizes, seed=0):
    """Random rows of so many tokens, of which so many at the end are learnt."""
    rng = np.random.default_rng(seed)
    return [
        Example(rng.integers(3, 400, n).astype(np.int32), np.arange(n) >= n - learnt, f"r:{i}")
        for i, (n, learnt) in enumerate(sizes)
    ]


def batch_of(examples, rows=None, *, prefix=0):
    rows = tuple(range(len(examples))) if rows is None else tuple(rows)
    width = -(-max(examples[i].read_tokens for i in rows) // 8) * 8
    return make_batch(examples, Plan(rows, width), pad_id=PAD, prefix=prefix)


def step_of(examples, *parts):
    """One step of these micro-batches; without parts, one of all rows."""
    return [partial(batch_of, examples, rows) for rows in parts or [range(len(examples))]]


def in_this_process(model, logits=_picked):
    """What `train` computes the steps of `step_of` with."""
    gradient = Gradient(model, logits)
    return lambda parts, seed: gradient(enumerate(parts), seed)
