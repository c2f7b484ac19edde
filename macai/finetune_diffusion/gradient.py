"""Loss and gradient of the parts of a step, as sums over pictures."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from macai.train.gradient import Sums, add_up


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
        """Compute the parts one after the other and add them up: see `add_up`."""
        return add_up(
            self._model,
            parts,
            seed,
            step=lambda batch: self._both(self._model, batch),
            count=lambda batch: (batch.images, batch.images, batch.computed),
        )
