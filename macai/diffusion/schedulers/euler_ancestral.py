"""Euler with ancestral noise, as diffusers' EulerAncestralDiscreteScheduler steps ("Euler a")."""

from dataclasses import dataclass

import numpy as np

from macai.diffusion.schedulers import tables
from macai.diffusion.schedulers.base import Array, NoiseSource
from macai.diffusion.schedulers.euler import SigmaScheduler
from macai.diffusion.schedulers.options import SPACINGS, Options, choice


@dataclass(frozen=True, kw_only=True)
class EulerAncestralOptions(Options):
    class_name = "EulerAncestralDiscreteScheduler"

    timestep_spacing: str = choice(*SPACINGS, default="linspace")
    prediction_type: str = choice("epsilon", "v_prediction", default="epsilon")


class EulerAncestral(SigmaScheduler):
    """Each step goes further down than the next sigma and comes back up with fresh noise."""

    def __init__(self, options: EulerAncestralOptions) -> None:
        self.options: EulerAncestralOptions = options
        super().__init__(options, finite_sigmas=True)

    def plan(self, steps: int) -> list[float]:
        table = tables.sigma_table(self.alphas_cumprod)
        timesteps = tables.sigma_timesteps(self.options, steps)
        sigmas = np.interp(timesteps, np.arange(len(table)), table)
        sigmas = np.append(sigmas, 0).astype(np.float32)
        self.sigmas = sigmas.tolist()
        self.init_noise_sigma = self.start_sigma(sigmas)
        planned: list[float] = timesteps.tolist()
        return planned

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        sigma, below = self.sigmas[k], self.sigmas[k + 1]
        self.x0 = self.estimate(output, sample, sigma)
        down = below**2 / sigma
        up = (below**2 - down**2) ** 0.5
        result = sample + (sample - self.x0) / sigma * (down - sigma)
        return result + up * self.draw(noise, sample)
