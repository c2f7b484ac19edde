"""Learning rate as a function of the step alone, so that a resumed run needs no schedule state."""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "wsd"]


def learning_rate(
    name: Schedule,
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    floor: float = 0.0,
    decay: float = 0.2,
) -> float:
    """Return the rate of step number `step`, counted from 0.

    It rises linearly to `peak` over the warm-up. Then it stays, or falls to `floor` times the peak
    after the last step: along half a cosine or a line, or, with wsd, along a line in the last
    `decay` of all steps only. A warm-up longer than the run is cut to half of it.
    """
    warmup = min(warmup_steps, total_steps // 2)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    fall = total_steps - warmup
    if name == "wsd":
        fall = min(fall, max(1, round(decay * total_steps)))
    progress = max(0, step - (total_steps - fall)) / max(1, fall)
    if name == "constant":
        return peak
    height = 0.5 * (1 + math.cos(math.pi * progress)) if name == "cosine" else 1 - progress
    return peak * (floor + (1 - floor) * height)
