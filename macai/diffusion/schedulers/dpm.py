"""DPM-Solver++ (Lu et al., arXiv:2211.01095), as diffusers' DPMSolverMultistepScheduler steps.

`dpm++2m` and `dpm++2m-karras` are its deterministic form. `dpm++sde` is its stochastic form
(algorithm_type "sde-dpmsolver++"), multistep too: what other programs call "DPM++ 2M SDE". It is
not their single-step "DPM++ SDE", whose Brownian noise needs torchsde.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from macai.diffusion.schedulers import tables
from macai.diffusion.schedulers.base import Array, NoiseSource
from macai.diffusion.schedulers.options import choice
from macai.diffusion.schedulers.solver import SolverOptions, SolverScheduler

FEW_STEPS = 15  # below so many, the last steps are taken with lower orders


@dataclass(frozen=True, kw_only=True)
class DPMOptions(SolverOptions):
    class_name = "DPMSolverMultistepScheduler"
    refused: ClassVar[Mapping[str, str]] = {
        **SolverOptions.refused,
        "variance_type": "models that predict a variance too are not Stable Diffusion",
    }

    algorithm_type: str = choice(
        "dpmsolver++", "sde-dpmsolver++", default="dpmsolver++", aliases={"deis": "dpmsolver++"}
    )
    solver_type: str = choice(
        "midpoint",
        "heun",
        default="midpoint",
        aliases={"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    )
    euler_at_final: bool = False
    use_lu_lambdas: bool = False
    lambda_min_clipped: float = -math.inf


class DPMSolver(SolverScheduler):
    """Multistep solver of order 1 to 3 of the estimates of the final sample."""

    def __init__(self, options: DPMOptions) -> None:
        self.options: DPMOptions = options
        super().__init__(options)

    def plan(self, steps: int) -> list[float]:
        options = self.options
        table = tables.sigma_table(self.alphas_cumprod)
        rising = -np.log(table[::-1])
        last = options.num_train_timesteps - int(
            np.searchsorted(rising, options.lambda_min_clipped)
        )
        timesteps: tables.Floats | tables.Ints = tables.solver_timesteps(options, steps, last)
        end = float(table[0]) if options.final_sigmas_type == "sigma_min" else 0.0
        sigmas = tables.respaced(options, table[::-1], steps)
        if sigmas is None and options.use_lu_lambdas:
            logs = np.log(table)
            sigmas = np.exp(tables.powers(float(logs[-1]), float(logs[0]), steps, rho=1.0))
        if sigmas is None:
            self.sigmas = self.sigmas_at(timesteps.astype(np.int64), table, end)
        else:
            self.sigmas = np.append(sigmas, end).astype(np.float32).tolist()
            timesteps = tables.timesteps_of(sigmas, table)
            # diffusers rounds Karras and Lu timesteps, but not for cosine betas, and cuts the rest.
            cut = options.use_exponential_sigmas or options.beta_schedule == "squaredcos_cap_v2"
            timesteps = timesteps if cut else timesteps.round()
        planned: list[float] = timesteps.astype(np.int64).tolist()
        return planned

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        self.keep(self.convert(output, k, sample)[0])
        order = self._order(k)
        self._taken = min(self._taken + 1, self.options.solver_order)
        stochastic = self.options.algorithm_type == "sde-dpmsolver++"
        fresh: Array = self.draw(noise, sample) if stochastic else None
        width = self.log_ratio(k + 1) - self.log_ratio(k)
        if width == 0:  # Karras sigmas that end at sigma_min: the last step goes nowhere
            return sample
        signal, scale = self.shares(k + 1)
        # exp(-h) of the deterministic solver; the stochastic one goes twice as far and comes back.
        reach = 2 * width if stochastic else width
        decay = scale / self.shares(k)[1] * (math.exp(-width) if stochastic else 1)
        result = decay * sample
        for weight, difference in self._terms(order, k, width, reach):
            result = result + signal * weight * difference
        if stochastic:
            result = result + scale * math.sqrt(-math.expm1(-2 * width)) * fresh
        return result

    def _order(self, k: int) -> int:
        """Return the order of this step: lower at both ends of a run."""
        options, left = self.options, len(self._plan) - k
        few = options.lower_order_final and len(self._plan) < FEW_STEPS
        if left == 1 and (options.euler_at_final or few or options.final_sigmas_type == "zero"):
            return 1
        order = min(options.solver_order, self._taken + 1)
        return min(order, 2) if left == 2 and few else order

    def _terms(self, order: int, k: int, width: float, reach: float) -> list[tuple[float, Array]]:
        """Return the differences of the kept estimates, and the weight of each over `signal`."""
        grown = -math.expm1(-reach)
        newest = self._kept[-1]
        terms = [(grown, newest)]
        if order == 1:
            return terms
        ratio = (self.log_ratio(k) - self.log_ratio(k - 1)) / width
        slope = (newest - self._kept[-2]) / ratio
        second = 1 - grown / reach
        if order == 2:
            return [
                *terms,
                (grown / 2 if self.options.solver_type == "midpoint" else second, slope),
            ]
        older = (self.log_ratio(k - 1) - self.log_ratio(k - 2)) / width
        bend = (slope - (self._kept[-2] - self._kept[-3]) / older) / (ratio + older)
        # diffusers subtracts the half in the stochastic solver, where theory adds it; so do we.
        half = -0.5 if self.options.algorithm_type == "sde-dpmsolver++" else 0.5
        third = (grown - reach) / reach**2 + half
        return [*terms, (second, slope + ratio * bend), (third, bend)]
