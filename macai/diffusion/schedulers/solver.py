"""What the multistep solvers DPM++ and UniPC share: sigmas of whole timesteps, their logarithms.

A sample here has unit variance: signal² + noise² = 1, noise / signal = sigma.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from macai.diffusion.schedulers import tables
from macai.diffusion.schedulers.base import Array, Scheduler, predictions, thresholded
from macai.diffusion.schedulers.options import FLOW, SigmaOptions, choice
from macai.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SolverOptions(SigmaOptions):
    """Options of diffusers' multistep solvers."""

    refused: ClassVar[Mapping[str, str]] = {
        **SigmaOptions.refused,
        "use_flow_sigmas": FLOW,
        "use_dynamic_shifting": FLOW,
        "shift_terminal": FLOW,
    }

    solver_order: int = 2
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    lower_order_final: bool = True
    final_sigmas_type: str = choice("zero", "sigma_min", default="zero")

    def problem(self) -> str | None:
        if not 1 <= self.solver_order <= 3:
            return f"solver_order = {self.solver_order} is not 1, 2 or 3"
        return super().problem()


class SolverScheduler(Scheduler):
    """Keeps the last converted predictions, oldest first."""

    options: SolverOptions

    def __init__(self, options: SolverOptions) -> None:
        super().__init__(options, finite_sigmas=True)

    def forget(self) -> None:
        self._kept: list[Array] = []
        self._taken = 0  # steps behind us, counted up to the solver's order

    def keep(self, converted: Array) -> None:
        self._kept = [*self._kept, converted][-self.options.solver_order :]

    def shares(self, k: int) -> tuple[float, float]:
        """Return the factors of signal and noise at the plan's index `k`."""
        signal = 1 / (self.sigmas[k] ** 2 + 1) ** 0.5
        return signal, self.sigmas[k] * signal

    def log_ratio(self, k: int) -> float:
        """Return log(signal / noise) at the plan's index `k`; infinite where sigma is zero."""
        return -math.log(self.sigmas[k]) if self.sigmas[k] else math.inf

    def sigmas_at(self, timesteps: tables.Ints, table: tables.Floats, last: float) -> list[float]:
        """Return the sigma of each timestep, and the last one.

        Raises:
            UsageError: A timestep twice: a step of no width leads nowhere.
        """
        distinct = len(np.unique(timesteps))
        if distinct < len(timesteps):
            raise UsageError(
                f"{len(timesteps)} steps fall on {distinct} timesteps", hint="take fewer steps"
            )
        sigmas = np.interp(timesteps, np.arange(len(table)), table)
        listed: list[float] = np.append(sigmas, last).astype(np.float32).tolist()
        return listed

    def convert(self, output: Array, k: int, sample: Array) -> tuple[Array, Array]:
        """Return the estimates of final sample, thresholded, and noise; sets `x0`."""
        x0, epsilon = predictions(self.options.prediction_type, output, sample, *self.shares(k))
        if self.options.thresholding:
            x0 = thresholded(
                x0, self.options.dynamic_thresholding_ratio, self.options.sample_max_value
            )
        self.x0 = x0
        return x0, epsilon
