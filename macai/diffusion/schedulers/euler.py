"""Euler over sigmas (Karras et al., arXiv:2206.00364, algorithm 2 without churn).

As diffusers' EulerDiscreteScheduler steps; `SigmaScheduler` is the part that Heun and
Euler ancestral share.
"""

from dataclasses import dataclass

import numpy as np

from macai.diffusion.schedulers import tables
from macai.diffusion.schedulers.base import Array, NoiseSource, Scheduler
from macai.diffusion.schedulers.options import PREDICTIONS, SigmaOptions, choice


@dataclass(frozen=True, kw_only=True)
class EulerOptions(SigmaOptions):
    class_name = "EulerDiscreteScheduler"

    prediction_type: str = choice(
        *PREDICTIONS, default="epsilon", aliases={"original_sample": "sample"}
    )
    interpolation_type: str = choice("linear", "log_linear", default="linear")
    timestep_type: str = choice("discrete", "continuous", default="discrete")
    final_sigmas_type: str = choice("zero", "sigma_min", default="zero")


class SigmaScheduler(Scheduler):
    """A sample here is the final sample plus sigma times standard noise."""

    def scale_model_input(self, sample: Array, i: int) -> Array:
        sigma = self.sigmas[self._begin + i]
        return sample / (sigma**2 + 1) ** 0.5

    def shares(self, k: int) -> tuple[float, float]:
        return 1.0, self.sigmas[k]

    def estimate(self, output: Array, sample: Array, sigma: float) -> Array:
        """Return the estimate of the final sample."""
        if self.options.prediction_type == "epsilon":
            return sample - sigma * output
        if self.options.prediction_type == "sample":
            return output
        root = (sigma**2 + 1) ** 0.5
        return output * (-sigma / root) + sample / root**2

    def start_sigma(self, sigmas: tables.Floats) -> float:
        """Return the deviation of what a run from pure noise starts from."""
        largest = float(sigmas.max())
        if self.options.timestep_spacing == "leading":
            return (largest**2 + 1) ** 0.5
        return largest


class Euler(SigmaScheduler):
    """One straight step from each sigma to the next."""

    def __init__(self, options: EulerOptions) -> None:
        self.options: EulerOptions = options
        super().__init__(options, finite_sigmas=True)

    def plan(self, steps: int) -> list[float]:
        options = self.options
        table = tables.sigma_table(self.alphas_cumprod)
        timesteps = tables.sigma_timesteps(options, steps)
        if options.interpolation_type == "log_linear":
            # One sigma more than timesteps, as diffusers has it: the last of them is never used.
            ends = np.log(table[[-1, 0]])
            sigmas = np.exp(np.linspace(ends[0], ends[1], steps + 1).astype(np.float32))
        else:
            sigmas = np.interp(timesteps, np.arange(len(table)), table)
        respaced = tables.respaced(options, sigmas, steps)
        if respaced is not None:
            sigmas, timesteps = respaced, tables.timesteps_of(respaced, table)
        last = table[0] if options.final_sigmas_type == "sigma_min" else 0
        sigmas = np.append(sigmas, last).astype(np.float32)
        if options.timestep_type == "continuous" and options.prediction_type == "v_prediction":
            timesteps = 0.25 * np.log(sigmas[:-1])
        self.sigmas = sigmas.tolist()
        self.init_noise_sigma = self.start_sigma(sigmas)
        planned: list[float] = timesteps.astype(np.float32).tolist()
        return planned

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        sigma = self.sigmas[k]
        self.x0 = self.estimate(output, sample, sigma)
        return sample + (sample - self.x0) / sigma * (self.sigmas[k + 1] - sigma)
