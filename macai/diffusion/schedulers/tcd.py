"""Trajectory consistency (Zheng et al., arXiv:2402.19159), as diffusers' TCDScheduler steps."""

from dataclasses import dataclass

import numpy as np

from macai.diffusion.schedulers.base import Array, NoiseSource, Scheduler, predictions
from macai.diffusion.schedulers.lcm import DistilledOptions, distilled_timesteps


@dataclass(frozen=True, kw_only=True)
class TCDOptions(DistilledOptions):
    """diffusers' class has the options of clipping too, and does not use them."""

    class_name = "TCDScheduler"


class TCD(Scheduler):
    """Each step goes to (1 - eta) of the next timestep, and comes back up with fresh noise."""

    def __init__(self, options: TCDOptions, *, eta: float = 0.3) -> None:
        self.options: TCDOptions = options
        super().__init__(options)
        self.eta: float = eta

    def plan(self, steps: int) -> list[float]:
        timesteps = distilled_timesteps(self.options, steps)
        self.check_table(timesteps)
        return timesteps

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        x0, epsilon = predictions(self.options.prediction_type, output, sample, *self.shares(k))
        self.x0 = x0
        final = k == len(self._plan) - 1
        following = 0 if final else self._plan[k + 1]
        # In float32, as torch multiplies: the floor of a whole product depends on it.
        lower = int(np.floor(np.float32(1 - self.eta) * np.float32(following)))
        share, following_share = self.product(lower), self.product(following)
        result = share**0.5 * x0 + (1 - share) ** 0.5 * epsilon
        if self.eta == 0 or final:
            return result
        ratio = following_share / share
        return ratio**0.5 * result + (1 - ratio) ** 0.5 * self.draw(noise, sample)
