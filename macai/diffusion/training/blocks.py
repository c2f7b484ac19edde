"""Gradient checkpointing (arXiv:1604.06174): blocks computed again for the gradient, not kept."""

from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.attention import BasicTransformerBlock
from macai.diffusion.models.clip_text import CLIPEncoderLayer
from macai.diffusion.models.resnet import ResnetBlock2D

Kinds = Literal["none", "transformers", "all"]

_CLASSES: dict[Kinds, tuple[type[nn.Module], ...]] = {
    "none": (),
    "transformers": (BasicTransformerBlock, CLIPEncoderLayer),
    "all": (BasicTransformerBlock, CLIPEncoderLayer, ResnetBlock2D),
}


def checkpoint_blocks(model: nn.Module, kinds: Kinds) -> int:
    """Have the blocks in `model` forget what they computed; return how many do.

    It changes memory and time of a gradient, not its value: dropout draws the same both times.
    """
    count = 0
    for module in model.modules():
        for cls in _CLASSES[kinds]:
            if type(module) is cls:
                module.__class__ = _checkpointed(cls)
                count += 1
    return count


def _checkpointed(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a class that is `cls` in all but what it keeps; an instance may become one."""

    def call(self: nn.Module, *args: mx.array | None) -> mx.array:
        arrays = [a for a in args if a is not None]
        random = _random_state()

        def compute(parameters: Any, *given: mx.array) -> mx.array:
            # The same when this is called again for the gradient: dropout draws the same mask.
            mx.random.seed(random)
            self.update(parameters)
            rest = iter(given)
            return cls.__call__(self, *[a if a is None else next(rest) for a in args])

        parameters = self.trainable_parameters()
        out: mx.array = mx.checkpoint(compute)(parameters, *arrays)
        self.update(parameters)
        return out

    return type(cls.__name__, (cls,), {"__call__": call})


def _random_state() -> int:
    """Return the number that seeds MLX's random state to what it is now."""
    high, low = mx.random.state[0].tolist()  # type: ignore[index]
    return int(high) << 32 | int(low)
