"""An exponential moving average of trained weights, with diffusers' warm-up (EMAModel)."""

import mlx.core as mx


class Average:
    """The running average of a vector of weights, float32.

    Attributes:
        vector: The average so far.
    """

    def __init__(self, vector: mx.array, decay: float) -> None:
        """Begin with `vector`, of all trained weights; `decay` is what a step keeps of it."""
        self.vector = mx.array(vector)
        self._decay = decay

    def add(self, vector: mx.array, step: int) -> None:
        """Take in the weights after `step`, counted from 1; evaluates the average."""
        kept = decay_at(step, self._decay)
        self.vector = self.vector - (1 - kept) * (self.vector - vector)
        mx.eval(self.vector)


def decay_at(step: int, decay: float) -> float:
    """Return what is kept at a step: little at first, when the weights are still far off."""
    before = step - 1
    return min(decay, (1 + before) / (10 + before)) if before > 0 else 0.0
