"""Loss and gradient of the parts of a step, as sums over pictures."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from macai.models.arrays import scalar
from macai.train.gradient import Sums
from macai.train.optimizer import joined


class Batch(Protocol):
    """What a loss is the sum of: pictures that count, and all that are computed."""

    @property
    def images(self) -> int: ...
    @property
    def computed(self) -> int: ...


Loss = Callable[[Any, Any], mx.array]
"""(model, batch) -> the sum over its pictures, float32 []."""


class ImageGradient:
    """Computes the sums of a step: what `macai.train.loop.train` calls."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._model = model
        self._both = nn.value_and_grad(model, loss)

    def __call__(self, parts: Iterable[tuple[int, Callable[[], Batch]]], seed: int) -> Sums:
        """Compute the parts one after the other and add them up.

        Args:
            parts: At least one; its number in the step and what makes it.
            seed: Of the step: with a part's number it seeds the dropout.
        """
        parameters = self._model.trainable_parameters()
        loss, grads, batches = mx.array(0.0), None, list[tuple[int, int]]()
        for number, make in parts:
            batch = make()
            mx.random.seed(seed + number)
            new_loss, new = self._both(self._model, batch)
            self._model.update(parameters)  # tracing left its own arrays in the model
            loss = loss + new_loss
            grads = new if grads is None else tree_map(mx.add, grads, new)
            mx.eval(loss, grads)
            batches.append((batch.images, batch.computed))
        vector = joined(grads)
        mx.eval(vector)
        images = sum(images for images, _ in batches)
        return Sums(
            loss=scalar(loss),
            vector=vector,
            learnt_tokens=images,
            real_tokens=images,
            processed_tokens=sum(computed for _, computed in batches),
            peak_memory_bytes=mx.get_peak_memory(),
        )
