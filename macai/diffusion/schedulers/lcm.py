"""Latent consistency (Luo et al., arXiv:2310.04378), as diffusers' LCMScheduler steps.

`distilled_timesteps` is TCD's plan too.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from macai.diffusion.schedulers.base import Array, NoiseSource, Scheduler, bounded, predictions
from macai.diffusion.schedulers.options import BETAS, ClippingOptions, choice
from macai.errors import UsageError

SIGMA_DATA = 0.5


@dataclass(frozen=True, kw_only=True)
class DistilledOptions(ClippingOptions):
    """Options of schedulers for models distilled to run in a few steps."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = choice(*BETAS, default="scaled_linear")
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def problem(self) -> str | None:
        if not 1 <= self.original_inference_steps <= self.num_train_timesteps:
            return f"original_inference_steps = {self.original_inference_steps} is out of range"
        return super().problem()


@dataclass(frozen=True, kw_only=True)
class LCMOptions(DistilledOptions):
    class_name = "LCMScheduler"


def distilled_timesteps(
    options: DistilledOptions, steps: int, *, reach: float = 1.0
) -> list[float]:
    """Return `steps` of the timesteps the model was distilled at, falling.

    Args:
        options: Of the scheduler.
        steps: How many.
        reach: The share of those timesteps, from the last one up, that they are taken from.

    Raises:
        UsageError: More steps than there are.
    """
    distilled = int(options.original_inference_steps * reach)
    if steps > distilled:
        part = "" if reach == 1 else f", of which a strength of {reach:g} leaves {distilled}"
        raise UsageError(
            f"{steps} steps: the model was distilled over {options.original_inference_steps}{part}",
            hint="4 to 8 steps are usual, or choose another scheduler",
        )
    stride = options.num_train_timesteps // options.original_inference_steps
    falling = np.arange(distilled, 0, -1) * stride - 1
    chosen = np.floor(np.linspace(0, distilled, steps, endpoint=False)).astype(np.int64)
    timesteps: list[float] = falling[chosen].tolist()
    return timesteps


class LCM(Scheduler):
    """Each step estimates the final sample; all but the last add fresh noise to it."""

    can_reach: ClassVar[bool] = True

    def __init__(self, options: LCMOptions) -> None:
        self.options: LCMOptions = options
        super().__init__(options)

    def plan(self, steps: int) -> list[float]:
        timesteps = distilled_timesteps(self.options, steps, reach=self._reach)
        self.check_table(timesteps)
        return timesteps

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        x0, _ = predictions(self.options.prediction_type, output, sample, *self.shares(k))
        scaled = self._plan[k] * self.options.timestep_scaling
        divisor = scaled**2 + SIGMA_DATA**2
        kept, weight = SIGMA_DATA**2 / divisor, scaled / divisor**0.5
        self.x0 = weight * bounded(x0, self.options) + kept * sample
        if k == len(self._plan) - 1:
            return self.x0
        signal, scale = self.shares(k + 1)
        return signal * self.x0 + scale * self.draw(noise, sample)
