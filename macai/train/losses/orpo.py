"""ORPO (Hong et al., arXiv:2403.07691, equations 6 and 7): a preference while learning.

Reads `beta`, the paper's lambda (0.1): the weight of the odds ratio beside the usual loss, which is
the mean over the tokens of the better answer. No reference, and no training on answers before.
"""

import mlx.core as mx

from macai.train.losses.compared import Compared, Options, PairLoss, log_sigmoid, per_token


def each(answers: Compared, options: Options) -> mx.array:
    """Return -mean of the first - beta log sigmoid(log odds of the first - of the second)."""
    better = answers.first / answers.first_tokens
    worse = answers.second / answers.second_tokens
    return -better - options.beta * log_sigmoid(_log_odds(better) - _log_odds(worse))


def _log_odds(log_probability: mx.array) -> mx.array:
    """log(p / (1 - p)); p is the geometric mean of the tokens' probabilities."""
    p = mx.minimum(log_probability, -1e-6)  # of a certain answer the odds are infinite
    return p - mx.log(-mx.expm1(p))


ORPO = PairLoss(each=each, reward=per_token, needs_reference=False)
