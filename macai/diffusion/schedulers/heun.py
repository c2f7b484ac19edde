"""Heun's second-order method over sigmas, as diffusers' HeunDiscreteScheduler steps."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from macai.diffusion.schedulers import tables
from macai.diffusion.schedulers.base import Array, NoiseSource, clipped
from macai.diffusion.schedulers.euler import SigmaScheduler
from macai.diffusion.schedulers.options import BETAS, SigmaOptions, absent, choice


@dataclass(frozen=True, kw_only=True)
class HeunOptions(SigmaOptions):
    class_name = "HeunDiscreteScheduler"

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = choice(*BETAS, "exp", default="linear")
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    rescale_betas_zero_snr: bool = absent()


class Heun(SigmaScheduler):
    """Two calls a step, at both its ends, but for the last step, which is Euler's."""

    order: ClassVar[int] = 2

    def __init__(self, options: HeunOptions) -> None:
        self.options: HeunOptions = options
        super().__init__(options)

    def plan(self, steps: int) -> list[float]:
        table = tables.sigma_table(self.alphas_cumprod)
        timesteps = tables.sigma_timesteps(self.options, steps)
        sigmas: tables.Floats = np.interp(timesteps, np.arange(len(table)), table)
        respaced = tables.respaced(self.options, sigmas, steps)
        if respaced is not None:
            sigmas, timesteps = respaced, tables.timesteps_of(respaced, table)
        sigmas = sigmas.astype(np.float32)
        self.sigmas = [*sigmas.repeat(2)[1:].tolist(), 0.0]
        self.init_noise_sigma = self.start_sigma(sigmas)
        planned: list[float] = timesteps.astype(np.float32).repeat(2)[1:].tolist()
        return planned

    def forget(self) -> None:
        self._slope: Array = None
        self._from: Array = None
        self._stride = 0.0

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        sigma = self.sigmas[k]
        x0 = self.estimate(output, sample, sigma)
        if self.options.clip_sample:
            bound = self.options.clip_sample_range
            x0 = clipped(x0, -bound, bound)
        self.x0 = x0
        slope = (sample - x0) / sigma
        if self._slope is None:
            self._slope, self._from = slope, sample
            self._stride = self.sigmas[k + 1] - sigma
            return sample + slope * self._stride
        result = self._from + (self._slope + slope) / 2 * self._stride
        self._slope = self._from = None
        return result
