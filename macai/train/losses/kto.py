"""KTO (Ethayarajh et al., arXiv:2402.01306, equation 8): answers that are liked or not, unpaired.

Reads `beta`, and `good_weight` and `bad_weight`, the paper's lambdas: with n times as many answers
of one kind, the other's should be up to n times as high. What an answer is measured against is the
divergence from the reference, estimated as in the paper on answers to other prompts; it is that of
the part of a step which is computed at once, so `batch.micro_tokens` and `train.workers` change it
a little.
"""

import mlx.core as mx

from macai.train.losses.compared import Compared, Options, PairLoss


def each(answers: Compared, options: Options) -> mx.array:
    """Return weight (1 - sigmoid(± beta (first - reference - divergence)))."""
    gain = answers.first - answers.first_reference
    others = (answers.second - answers.second_reference).mean()
    divergence = mx.stop_gradient(mx.maximum(others, 0))
    sign = mx.where(answers.good, 1.0, -1.0)
    weight = mx.where(answers.good, options.good_weight, options.bad_weight)
    return weight * (1 - mx.sigmoid(sign * options.beta * (gain - divergence)))


KTO = PairLoss(each=each, form="labels")
