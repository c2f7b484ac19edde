"""What a loss of two answers is computed from."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from macai.data.pairs import Form


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The numbers of a recipe's `loss`; each loss says which it reads."""

    beta: float
    margin: float
    label_smoothing: float
    good_weight: float
    bad_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """P times two answers, the first and the second of each.

    Attributes:
        first: float32 [P]; the log probability that the model gives the whole answer.
        second: Likewise.
        first_reference: float32 [P]; what the model without its adapter gives it. Zeros where the
            loss asks for no reference.
        second_reference: Likewise.
        first_tokens: float32 [P]; the learnt tokens of the answer.
        second_tokens: Likewise.
        good: bool [P]; the label of the first.
    """

    first: mx.array
    second: mx.array
    first_reference: mx.array
    second_reference: mx.array
    first_tokens: mx.array
    second_tokens: mx.array
    good: mx.array


def gain(
    log_probability: mx.array, reference: mx.array, tokens: mx.array, options: Options
) -> mx.array:
    """DPO's reward (arXiv:2305.18290, equation 5 without what all answers share), as KTO's."""
    return options.beta * (log_probability - reference)


def per_token(
    log_probability: mx.array, reference: mx.array, tokens: mx.array, options: Options
) -> mx.array:
    """SimPO's reward (arXiv:2405.14734, equation 4); for ORPO, which has none, a measure."""
    return options.beta * log_probability / tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLoss:
    """A loss.

    Attributes:
        each: (answers, options) -> the loss of each two, float32 [P].
        reward: (log probability of answers, of the model without its adapter, their learnt tokens,
            options) -> what the loss takes the answers to be worth, float32 [P].
        form: Of its rows.
        needs_reference: Whether the model without its adapter is asked too.
    """

    each: Callable[[Compared, Options], mx.array]
    reward: Callable[[mx.array, mx.array, mx.array, Options], mx.array] = gain
    form: Form = "pairs"
    needs_reference: bool = True


def log_sigmoid(x: mx.array) -> mx.array:
    """Return log(1 / (1 + exp(-x))), which does not overflow."""
    return -mx.logaddexp(mx.zeros_like(x), -x)
