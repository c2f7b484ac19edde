"""What a step computes: the right loss, its gradient, however the step is cut or computed."""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.data import batches
from macai.data.batches import Batch, Plan
from macai.data.tokens import Example
from macai.models.arrays import scalar
from macai.selftest.proof import (
    Finding,
    Proof,
    Subject,
    largest_difference,
    random_examples,
    unequal_bits,
    within,
)
from macai.train.gradient import Gradient, Sums
from macai.train.job import training_ops
from macai.train.loss import logits_for, loss_value
from macai.train.optimizer import joined

SIZES = ((60, 40), (4, 1), (7, 3), (9, 2), (5, 1))
"""Of each row its tokens and the learnt ones: micro-batches of 40 and of 1 to 3 learnt tokens."""
PARTS = ((0,), (1,), (2, 3), (4,))
PAD = 2


def examples_for(model: nn.Module, *, begin: int = 0) -> list[Example]:
    """Return the rows of `SIZES`, each after `begin` tokens that all rows have."""
    vocabulary = logits_for(model)(model, mx.zeros((1, 1), mx.int32), mx.zeros(1, mx.int32))
    sizes = [(begin + length, learnt) for length, learnt in SIZES]
    return random_examples(*sizes, vocabulary=vocabulary.shape[-1], begin=begin)


def made(examples: Sequence[Example], rows: Sequence[int], *, pad: int = PAD) -> Batch:
    """Return these rows as a micro-batch."""
    width = -(-max(examples[row].read_tokens for row in rows) // 8) * 8
    return batches.make_batch(examples, Plan(tuple(rows), width), pad_id=pad)


def sums_of(
    model: nn.Module,
    examples: Sequence[Example],
    *parts: Sequence[int],
    recompute: bool = False,
    pad: int = PAD,
) -> Sums:
    """Return what a step of these micro-batches comes to; without parts, of one of all rows."""
    rows = parts or (range(len(examples)),)
    makers = [partial(made, examples, part, pad=pad) for part in rows]
    with training_ops(model, recompute=recompute):
        return Gradient(model, logits_for(model))(enumerate(makers), 5)


def reference(model: nn.Module, examples: Sequence[Example]) -> tuple[float, mx.array]:
    """Return the mean loss of all learnt tokens and its gradient, without the trainer.

    Each row by itself and unpadded, by the model's own call, a token at a time.
    """

    def mean(model: nn.Module) -> mx.array:
        total, learnt = mx.array(0.0), 0
        for example in examples:
            ids = mx.array(example.ids)
            scores = model(ids[None])[0].astype(mx.float32)
            for token in map(int, np.flatnonzero(example.learn)):
                before = scores[token - 1]
                total = total + mx.logsumexp(before) - before[ids[token]]
                learnt += 1
        return total / learnt

    loss, gradient = nn.value_and_grad(model, mean)(model)
    mx.eval(loss, gradient)
    return scalar(loss), joined(gradient)


def tolerance() -> float:
    """Return what rounding may come to in a deep model; a GPU may multiply with fewer bits."""
    return 1e-3 if mx.default_device() == mx.cpu else 1e-2


def find_reference(subject: Subject) -> Finding:
    """Compare a step with `reference`."""
    model = subject.adapted().model
    examples = examples_for(model)
    loss, gradient = reference(model, examples)
    sums = sums_of(model, examples, *PARTS)
    learnt = sum(example.learnt_tokens for example in examples)
    return within(
        tolerance(),
        loss=abs(sums.loss / sums.learnt_tokens / loss - 1),
        gradient=largest_difference(sums.vector / learnt, gradient),
    )


def find_accumulation(subject: Subject) -> Finding:
    """Compare a step in micro-batches with the same step in one."""
    model = subject.adapted().model
    examples = examples_for(model)
    whole, parts = sums_of(model, examples), sums_of(model, examples, *PARTS)
    return within(
        tolerance(),
        loss=abs(parts.loss / whole.loss - 1),
        gradient=largest_difference(
            parts.vector / parts.learnt_tokens, whole.vector / whole.learnt_tokens
        ),
    )


def find_recomputing(subject: Subject) -> Finding:
    """Compare gradient checkpointing with none, with dropout: to the last bit."""
    model = subject.adapted(dropout=0.4).model
    examples = examples_for(model)
    kept = sums_of(model, examples, *PARTS)
    again = sums_of(model, examples, *PARTS, recompute=True)
    different = unequal_bits([again.vector], [kept.vector])
    loss = "the same loss" if again.loss == kept.loss else f"loss {again.loss}, not {kept.loss}"
    held = not different and again.loss == kept.loss and scalar(mx.abs(kept.vector).max()) > 0
    return Finding(held, f"{loss}, {different} of {kept.vector.nbytes} bytes differ")


def find_padding(subject: Subject) -> Finding:
    """Count the targets, and change what rows are padded with: nothing may depend on it."""
    model = subject.adapted().model
    examples = examples_for(model)
    learnt = sum(example.learnt_tokens for example in examples)
    with training_ops(model, recompute=False):
        one, other = (
            loss_value(model, made(examples, range(len(SIZES)), pad=pad), logits_for(model))
            for pad in (PAD, PAD - 1)
        )
    counted = sums_of(model, examples).learnt_tokens
    held = counted == learnt and one == other
    return Finding(
        held,
        f"{counted} targets for {learnt} learnt tokens; loss {one:.4f} with one pad, "
        f"{other:.4f} with another",
    )


PROOFS = (
    Proof(
        name="reference",
        claim="loss and gradient are those of each learnt token by itself",
        find=find_reference,
        any_model=True,
    ),
    Proof(
        name="accumulation",
        claim="micro-batches add up to one big batch",
        find=find_accumulation,
        any_model=True,
    ),
    Proof(
        name="recomputing",
        claim="gradient checkpointing changes no bit, with dropout",
        find=find_recomputing,
        any_model=True,
    ),
    Proof(name="padding", claim="no pad is in the loss", find=find_padding, any_model=True),
)
