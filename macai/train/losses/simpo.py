"""SimPO (Meng et al., arXiv:2405.14734, equation 6): mean log probabilities, no reference.

Reads `beta` (the paper has 2 to 10) and `margin`, its gamma (0.3 to 1.6): by how much the better
answer must be the likelier one.
"""

import mlx.core as mx

from macai.train.losses.compared import Compared, Options, PairLoss, log_sigmoid, per_token


def each(answers: Compared, options: Options) -> mx.array:
    """Return -log sigmoid(beta (mean of the first - mean of the second) - margin)."""
    better = answers.first / answers.first_tokens
    worse = answers.second / answers.second_tokens
    return -log_sigmoid(options.beta * (better - worse) - options.margin)


SIMPO = PairLoss(each=each, reward=per_token, needs_reference=False)
