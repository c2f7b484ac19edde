"""Attention."""

import math

import numpy as np

from macai.mil.ops.activation import softmax_array
from macai.mil.ops.size import allowed
from macai.mil.registry import Array, op


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None
) -> Array:
    """[B, ..., L, E], [B, ..., S, E], [B, ..., S, V] → [B, ..., L, V]; the scale is 1/sqrt(E).

    A bool mask is True where a position takes part; a float mask is added. Batch dimensions have to
    be the same: only the mask is broadcast.
    """
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise ValueError(
            f"query, key and value have batch dimensions {list(query.shape[:-2])}, "
            f"{list(key.shape[:-2])} and {list(value.shape[:-2])}"
        )
    allowed((*query.shape[:-1], key.shape[-2]))
    scores = (query * np.float32(1 / math.sqrt(query.shape[-1]))) @ key.swapaxes(-1, -2)
    if attn_mask is not None and attn_mask.dtype == np.bool_:
        scores[~np.broadcast_to(attn_mask, scores.shape)] = -np.inf
    elif attn_mask is not None:
        scores += attn_mask
    return softmax_array(scores, -1) @ value
