"""How the next token is drawn; the samplers are mlx-lm's."""

import math
from collections.abc import Callable

import mlx.core as mx

from macai.errors import UsageError

Sampler = Callable[[mx.array], mx.array]
"""Log-probabilities float32 [B, V] -> token ids [B]."""

_GREEDY_BELOW = 1e-6
"""No second-best token is ever drawn below it, and 1 / temperature could overflow."""


def make_sampler(*, temperature: float, top_p: float = 1.0) -> Sampler:
    """Return a sampler; at temperature 0 the likeliest token, always.

    It draws from MLX's global generator; `mx.random.seed` makes a run repeatable.

    Args:
        temperature: Divides the log-probabilities.
        top_p: Draw only from the fewest tokens that hold this share of the probability.
    """
    from mlx_lm.sample_utils import make_sampler as make

    if not 0 <= temperature < math.inf:
        raise UsageError(
            f"temperature must be 0 or more, got {temperature}", hint="0 takes the likeliest token"
        )
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p must be in (0, 1], got {top_p}", hint="1 draws from all tokens")
    sampler: Sampler = make(
        temp=0.0 if temperature < _GREEDY_BELOW else temperature,
        top_p=0.0 if top_p == 1 else top_p,
    )
    return sampler


def greedy(logprobs: mx.array) -> mx.array:
    """Return the likeliest token of each row: [B, V] -> [B]."""
    return mx.argmax(logprobs, axis=-1)
