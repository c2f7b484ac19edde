"""Fuse and quantise again, measured on rows."""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from macai.data.batches import in_order, make_batch
from macai.data.rows import Row
from macai.data.tokens import Example, prepare
from macai.models.fuse import fuse
from macai.models.load import LoadedModel
from macai.models.requantise import Requantised, requantise
from macai.train.loss import Logits, logits_for, scores_of

TOKENS = 512
"""Padded tokens computed at once."""
MAX_LENGTH = 1024


def fuse_requantised(
    loaded: LoadedModel, rows: Sequence[Row], *, bits: int, raise_bits: bool
) -> Requantised:
    """Fuse the adapter in the model and quantise the result, in place.

    Args:
        loaded: With an adapter.
        rows: What is learnt of them is what must stay: see `macai.data.tokens.tokenise`.
        bits: See `macai.models.requantise.requantise`, for all that follows.
        raise_bits: As well.

    Raises:
        AdapterError, DataError: see `macai.errors`.
    """
    (prepared,) = prepare([rows], loaded.tokenizer, max_length=MAX_LENGTH, truncation="keep-end")
    answers = partial(likeliest, examples=prepared.examples, logits=logits_for(loaded.model))
    expected = answers(loaded.model)
    fuse(loaded)
    return requantise(loaded.model, answers, expected, bits=bits, raise_bits=raise_bits)


def likeliest(model: nn.Module, examples: Sequence[Example], logits: Logits) -> mx.array:
    """Return what the model would say in place of each learnt token, int32 [N], evaluated."""
    found = []
    for plan in in_order([e.read_tokens for e in examples], tokens=TOKENS):
        batch = make_batch(examples, plan, pad_id=0)
        ids = scores_of(model, batch, logits).argmax(axis=-1)[: batch.learnt_tokens]
        mx.eval(ids)
        found.append(ids)
    return mx.concatenate(found)
