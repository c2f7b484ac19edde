"""AdamW (Loshchilov and Hutter, arXiv:1711.05101); reads both betas and the weight decay."""

import mlx.optimizers as optim

from macai.train.rules.rule import Options, Part, Shapes


def adamw(shapes: Shapes, options: Options) -> list[Part]:
    """Return one part: AdamW for every array."""
    optimizer = optim.AdamW(
        learning_rate=options.learning_rate,
        betas=[options.beta1, options.beta2],
        weight_decay=options.weight_decay,
        bias_correction=True,  # MLX leaves it off by default; the papers and PyTorch have it on
    )
    return [Part(name="all", arrays=tuple(shapes), optimizer=optimizer, elementwise=True)]
