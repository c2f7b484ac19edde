"""Adafactor (Shazeer and Stern, arXiv:1804.04235): second moments of rows and columns alone.

Reads the weight decay and no beta. The learning rate is taken as it is, not scaled by the size of
the weights: B of a LoRA is zero at first, and would never move.
"""

import mlx.optimizers as optim

from macai.train.rules.rule import Options, Part, Shapes


def adafactor(shapes: Shapes, options: Options) -> list[Part]:
    """Return one part: Adafactor for every array."""
    optimizer = optim.Adafactor(
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        scale_parameter=False,
        relative_step=False,
    )
    return [Part(name="all", arrays=tuple(shapes), optimizer=optimizer, elementwise=False)]
