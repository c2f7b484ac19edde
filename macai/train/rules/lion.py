"""Lion (Chen et al., arXiv:2302.06675): the sign of a mean; half of AdamW's memory.

Reads both betas (the paper's are 0.9 and 0.99) and the weight decay. Every number moves by the
learning rate, so it should be a third to a tenth of AdamW's.
"""

import mlx.optimizers as optim

from macai.train.rules.rule import Options, Part, Shapes


def lion(shapes: Shapes, options: Options) -> list[Part]:
    """Return one part: Lion for every array."""
    optimizer = optim.Lion(
        learning_rate=options.learning_rate,
        betas=[options.beta1, options.beta2],
        weight_decay=options.weight_decay,
    )
    return [Part(name="all", arrays=tuple(shapes), optimizer=optimizer, elementwise=True)]
