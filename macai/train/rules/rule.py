"""What a rule is made from, and what it is made into."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.optimizers as optim


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The numbers of a recipe's `optimizer` that rules read; each says which."""

    learning_rate: float
    beta1: float
    beta2: float
    weight_decay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some of the trainable arrays, and the optimiser of them.

    Attributes:
        name: Of its state in a checkpoint.
        arrays: Their names.
        optimizer: Not yet initialised. Its learning rate is set before every step.
        elementwise: Whether a number's step depends on that number alone: then it sees all arrays
            as one vector, and else each in its shape.
        rate: What the learning rate is multiplied with.
    """

    name: str
    arrays: tuple[str, ...]
    optimizer: optim.Optimizer
    elementwise: bool
    rate: float = 1.0


Shapes = Mapping[str, tuple[int, ...]]
"""Of all trainable arrays, in the model's order."""

Rule = Callable[[Shapes, Options], Sequence[Part]]
"""Divides the arrays, none left out, into parts with an optimiser each."""
