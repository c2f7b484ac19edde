"""An optimiser over all trainable parameters as one vector.

LoRA has hundreds of small arrays, and MLX's AdamW takes a dozen operations for each: as one vector
they take a dozen in all. The rules are elementwise, so the numbers are the same.
"""

from itertools import accumulate
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_unflatten

from macai.models.arrays import named_arrays

_ALL = "all"


def joined(tree: Any) -> mx.array:
    """Return the arrays of nested dicts and lists end to end, in the order of `named_arrays`."""
    return mx.concatenate([array.reshape(-1) for array in named_arrays(tree).values()])


def init(optimizer: optim.Optimizer, model: nn.Module) -> None:
    """Give the optimiser its initial state for the trainable parameters of `model`."""
    optimizer.init({_ALL: joined(model.trainable_parameters())})


def adamw(
    model: nn.Module, *, learning_rate: float, beta1: float, beta2: float, weight_decay: float
) -> optim.Optimizer:
    """Return AdamW with its initial state for the trainable parameters of `model`."""
    optimizer = optim.AdamW(
        learning_rate=learning_rate,
        betas=[beta1, beta2],
        weight_decay=weight_decay,
        bias_correction=True,  # MLX leaves it off by default; the papers and PyTorch have it on
    )
    init(optimizer, model)
    return optimizer


def update(optimizer: optim.Optimizer, model: nn.Module, gradient: mx.array) -> None:
    """Take one step; `gradient` is `joined`, in the order of the trainable parameters. Lazy."""
    parameters = joined(model.trainable_parameters())
    put(model, optimizer.apply_gradients({_ALL: gradient}, {_ALL: parameters})[_ALL])


def put(model: nn.Module, vector: mx.array) -> None:
    """Give the trainable parameters the values of `vector`, which is `joined`. Lazy."""
    parameters = named_arrays(model.trainable_parameters())
    ends = list(accumulate(array.size for array in parameters.values()))
    pieces = zip(parameters.items(), mx.split(vector, ends[:-1]), strict=True)
    shaped = [(name, piece.reshape(old.shape)) for (name, old), piece in pieces]
    model.update(tree_unflatten(shaped))
