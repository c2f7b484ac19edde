"""DPO (Rafailov et al., arXiv:2305.18290, equation 7); with `label_smoothing` conservative DPO.

Reads `beta` (the paper's is 0.1; the higher, the closer the model stays to the reference) and
`label_smoothing`, the share of rows whose two answers are thought to be the wrong way round.
"""

import mlx.core as mx

from macai.train.losses.compared import Compared, Options, PairLoss, log_sigmoid


def each(answers: Compared, options: Options) -> mx.array:
    """Return -log sigmoid(beta ((first - reference) - (second - reference)))."""
    better = answers.first - answers.first_reference
    worse = answers.second - answers.second_reference
    margin = options.beta * (better - worse)
    wrong = options.label_smoothing
    return -(1 - wrong) * log_sigmoid(margin) - wrong * log_sigmoid(-margin)


DPO = PairLoss(each=each)
