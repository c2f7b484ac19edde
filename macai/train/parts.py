"""An optimiser of several, each for some of a model's trainable arrays.

It takes all of them as one vector, as `macai.train.optimizer` hands them to any.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from macai.train.rules import Part

VECTOR = "all"
"""The only name in the trees that an optimiser is given."""


class Parts(optim.Optimizer):
    """Hands each part of the vector to its own optimiser."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], parts: Sequence[Part]) -> None:
        """Take the shapes of the arrays in the order of the vector, and who is for which."""
        self._shapes = dict(shapes)
        self._parts = list(parts)

    @property
    def state(self) -> dict[str, Any]:
        """The state of each part's optimiser by its name."""
        return {part.name: part.optimizer.state for part in self._parts}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        for part in self._parts:
            part.optimizer.state = state[part.name]

    @property
    def learning_rate(self) -> mx.array:
        """That of a part whose `rate` is 1."""
        first = self._parts[0]
        return first.optimizer.learning_rate / first.rate

    @learning_rate.setter
    def learning_rate(self, rate: float | mx.array) -> None:
        for part in self._parts:
            part.optimizer.learning_rate = rate * part.rate

    def init(self, parameters: dict[str, mx.array]) -> None:
        """Give all of them their initial state."""
        for part, tree in self._divided(parameters[VECTOR]):
            part.optimizer.init(tree)

    def apply_gradients(
        self, gradients: dict[str, mx.array], parameters: dict[str, mx.array]
    ) -> dict[str, mx.array]:
        """Return the vector after a step of all of them. Lazy."""
        both = zip(self._divided(gradients[VECTOR]), self._divided(parameters[VECTOR]), strict=True)
        arrays: dict[str, mx.array] = {}
        for (part, gradient), (_, before) in both:
            after = part.optimizer.apply_gradients(gradient, before)
            if part.elementwise:
                after = self._cut(after[VECTOR], part.arrays)
            arrays |= dict(zip(part.arrays, after.values(), strict=True))
        return {VECTOR: mx.concatenate([arrays[name].reshape(-1) for name in self._shapes])}

    def _divided(self, vector: mx.array) -> list[tuple[Part, dict[str, mx.array]]]:
        """Return for each part the tree its optimiser is given."""
        pieces = self._cut(vector, tuple(self._shapes))
        divided = []
        for part in self._parts:
            own = {name: pieces[name] for name in part.arrays}
            if part.elementwise:
                tree = {VECTOR: mx.concatenate(list(own.values()))}
            else:
                # Dots would be read as nesting when a checkpoint comes back.
                shaped = {n: a.reshape(self._shapes[n]) for n, a in own.items()}
                tree = {name.replace(".", "/"): array for name, array in shaped.items()}
            divided.append((part, tree))
        return divided

    def _cut(self, vector: mx.array, names: Sequence[str]) -> dict[str, mx.array]:
        ends = list(accumulate(prod(self._shapes[name]) for name in names))
        return dict(zip(names, mx.split(vector, ends[:-1]), strict=True))


class Master(optim.Optimizer):
    """Keeps the parameters in float32 where the model has them in fewer bits.

    A step is often less than the last digit of a bfloat16, which would stay what it is.
    """

    def __init__(self, optimizer: optim.Optimizer) -> None:
        """Take who computes the steps."""
        self._optimizer = optimizer
        self._master = mx.zeros(0)

    @property
    def state(self) -> dict[str, Any]:
        """The parameters, and the state of the other."""
        return {"master": self._master, "rule": self._optimizer.state}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._master, self._optimizer.state = state["master"], state["rule"]

    @property
    def learning_rate(self) -> mx.array:
        """Of the other."""
        return self._optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: float | mx.array) -> None:
        self._optimizer.learning_rate = rate

    def init(self, parameters: dict[str, mx.array]) -> None:
        """Take the parameters as they are."""
        self._master = parameters[VECTOR]
        self._optimizer.init(parameters)

    def apply_gradients(
        self, gradients: dict[str, mx.array], parameters: dict[str, mx.array]
    ) -> dict[str, mx.array]:
        """Return the vector after a step, float32. Lazy."""
        after = self._optimizer.apply_gradients(gradients, {VECTOR: self._master})
        self._master = after[VECTOR]
        return after
