"""Learning rate as a function of the step alone, so that a resumed run needs no schedule state."""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def learning_rate(
    name: Schedule, step: int, *, peak: float, warmup_steps: int, total_steps: int
) -> float:
    """Return the rate of step number `step`, counted from 0.

    It rises linearly to `peak` over the warm-up, then falls to zero after the last step along half
    a cosine or a line, or stays. A warm-up longer than the run is cut to half of it.
    """
    warmup = min(warmup_steps, total_steps // 2)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    if name == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    if name == "linear":
        return peak * (1 - progress)
    return peak
