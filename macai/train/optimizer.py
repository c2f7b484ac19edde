"""An optimiser over all trainable parameters as one vector.

LoRA has hundreds of small arrays, and MLX's AdamW takes a dozen operations for each: as one vector
they take a dozen in all. A rule that is elementwise gives the same numbers so; of any other,
`macai.train.parts` cuts the vector again.
"""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_unflatten

from macai.errors import UsageError
from macai.models.arrays import named_arrays
from macai.train.parts import VECTOR, Master, Parts
from macai.train.rules import RULES, Options, Part, Rule


def joined(tree: Any) -> mx.array:
    """Return the arrays of nested dicts and lists end to end, in the order of `named_arrays`.

    float32, whatever they are.
    """
    arrays = named_arrays(tree).values()
    return mx.concatenate([array.reshape(-1).astype(mx.float32) for array in arrays])


def init(optimizer: optim.Optimizer, model: nn.Module) -> None:
    """Give the optimiser its initial state for the trainable parameters of `model`."""
    optimizer.init({VECTOR: joined(model.trainable_parameters())})


def make_optimizer(
    name: str, model: nn.Module, *, loraplus_lr_ratio: float = 1.0, **options: float
) -> optim.Optimizer:
    """Return an optimiser with its initial state for the trainable parameters of `model`.

    Args:
        name: A key of `macai.train.rules.RULES`.
        model: Neither its arrays nor which of them are trained may change afterwards.
        loraplus_lr_ratio: How many times the learning rate of A is that of B, in LoRA.
        options: Those of `macai.train.rules.Options`.
    """
    arrays = named_arrays(model.trainable_parameters())
    shapes = {name: array.shape for name, array in arrays.items()}
    parts = RULES[name](shapes, Options(**options))
    if loraplus_lr_ratio != 1:
        parts = _divided(RULES[name], shapes, Options(**options), loraplus_lr_ratio)
    optimizer: optim.Optimizer = Parts(shapes, parts)
    if len(parts) == 1 and parts[0].elementwise:
        optimizer = parts[0].optimizer  # for which nothing need be cut
    if any(array.dtype != mx.float32 for array in arrays.values()):
        optimizer = Master(optimizer)
    init(optimizer, model)
    return optimizer


def _divided(
    rule: Rule, shapes: dict[str, tuple[int, ...]], options: Options, ratio: float
) -> list[Part]:
    """Return the parts of B, whose rate is `ratio` times the usual one, and of all else."""
    fast = {name: shape for name, shape in shapes.items() if name.endswith(".lora_B")}
    if not fast:
        raise UsageError(
            "optimizer.loraplus_lr_ratio is for LoRA, and nothing here has a B",
            hint='leave it out, or set adapter.method = "lora"',
        )
    slow = {name: shape for name, shape in shapes.items() if name not in fast}
    parts = [replace(part, name=f"{part.name}_B", rate=ratio) for part in rule(fast, options)]
    return [*rule(slow, options), *parts]


def update(optimizer: optim.Optimizer, model: nn.Module, gradient: mx.array) -> None:
    """Take one step; `gradient` is `joined`, in the order of the trainable parameters. Lazy."""
    parameters = joined(model.trainable_parameters())
    put(model, optimizer.apply_gradients({VECTOR: gradient}, {VECTOR: parameters})[VECTOR])


def put(model: nn.Module, vector: mx.array) -> None:
    """Give the trainable parameters the values of `vector`, which is `joined`. Lazy."""
    parameters = named_arrays(model.trainable_parameters())
    ends = list(accumulate(array.size for array in parameters.values()))
    pieces = zip(parameters.items(), mx.split(vector, ends[:-1]), strict=True)
    shaped = [(name, piece.reshape(old.shape).astype(old.dtype)) for (name, old), piece in pieces]
    model.update(tree_unflatten(shaped))
