"""UniPC (Zhao et al., arXiv:2302.04867), as diffusers' UniPCMultistepScheduler steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from macai.diffusion.schedulers import tables
from macai.diffusion.schedulers.base import Array, NoiseSource
from macai.diffusion.schedulers.options import choice
from macai.diffusion.schedulers.solver import SolverOptions, SolverScheduler


@dataclass(frozen=True, kw_only=True)
class UniPCOptions(SolverOptions):
    class_name = "UniPCMultistepScheduler"
    refused: ClassVar[Mapping[str, str]] = {
        **SolverOptions.refused,
        "solver_p": "a predictor of another class is not built; leave it null",
    }

    predict_x0: bool = True
    solver_type: str = choice(
        "bh2",
        "bh1",
        default="bh2",
        aliases={"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"},
    )
    disable_corrector: tuple[int, ...] = ()

    def problem(self) -> str | None:
        respaced = self.use_karras_sigmas or self.use_exponential_sigmas
        ends = respaced or self.final_sigmas_type == "zero"
        if self.solver_order > 1 and not self.lower_order_final and ends:
            return "without lower_order_final the last step divides by zero"
        if not self.predict_x0 and self.final_sigmas_type == "zero":
            return "predict_x0 = False takes final_sigmas_type = 'sigma_min'"
        return super().problem()


class UniPC(SolverScheduler):
    """A predictor, and a corrector that mends each step with the next one's prediction."""

    def __init__(self, options: UniPCOptions) -> None:
        self.options: UniPCOptions = options
        super().__init__(options)

    def plan(self, steps: int) -> list[float]:
        options = self.options
        table = tables.sigma_table(self.alphas_cumprod)
        to_least = options.final_sigmas_type == "sigma_min"
        sigmas = tables.respaced(options, table[::-1], steps)
        if sigmas is None:
            whole = tables.solver_timesteps(options, steps, options.num_train_timesteps)
            self.sigmas = self.sigmas_at(whole, table, float(table[0]) if to_least else 0.0)
            planned: list[float] = whole.tolist()
            return planned
        self.sigmas = np.append(sigmas, sigmas[-1] if to_least else 0).astype(np.float32).tolist()
        timesteps = tables.timesteps_of(sigmas, table)
        if options.use_karras_sigmas:
            timesteps = timesteps.round()
        planned = timesteps.astype(np.int64).tolist()
        return planned

    def forget(self) -> None:
        super().forget()
        self._order = 0
        self._from: Array = None

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        x0, epsilon = self.convert(output, k, sample)
        converted = x0 if self.options.predict_x0 else epsilon
        if k > 0 and self._from is not None and k - 1 not in self.options.disable_corrector:
            sample = self._update(self._from, k - 1, self._order, corrected_by=converted)
        self.keep(converted)
        order = self.options.solver_order
        if self.options.lower_order_final:
            order = min(order, len(self._plan) - k)
        self._order = min(order, self._taken + 1)
        self._taken = min(self._taken + 1, self.options.solver_order)
        self._from = sample
        return self._update(sample, k, self._order)

    def _update(self, sample: Array, k: int, order: int, corrected_by: Array = None) -> Array:
        """Go from the plan's index `k` to the next, over the kept predictions.

        Args:
            sample: At `k`.
            k: Its index.
            order: How many predictions to use.
            corrected_by: The prediction at `k + 1`, for the corrector; None to predict.
        """
        width = self.log_ratio(k + 1) - self.log_ratio(k)
        sign = -1 if self.options.predict_x0 else 1
        (signal, scale), (signal_here, scale_here) = self.shares(k + 1), self.shares(k)
        lead, kept_share = (signal, scale / scale_here)
        if not self.options.predict_x0:
            lead, kept_share = (scale, signal / signal_here)
        newest = self._kept[-1]
        result = kept_share * sample - lead * math.expm1(sign * width) * newest
        others = [*self._kept[-2 : -order - 1 : -1]]
        gaps = [(self.log_ratio(k - 1 - i) - self.log_ratio(k)) / width for i in range(order - 1)]
        slopes = [(earlier - newest) / gap for earlier, gap in zip(others, gaps, strict=True)]
        if corrected_by is not None:
            slopes.append(corrected_by - newest)
            gaps.append(1.0)
        if not slopes:
            return result
        weights, gain = self._weights(gaps, sign * width)
        mixed = sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
        return result - lead * gain * mixed

    def _weights(self, gaps: list[float], width: float) -> tuple[list[float], float]:
        """Return the weight of each slope, and B(h) of the paper.

        They solve sum_m gaps[m]^i weights[m] = h phi_{i+1}(h) (i + 1)! / B(h); a sole slope
        weighs a half.
        """
        gain = width if self.options.solver_type == "bh1" else math.expm1(width)
        if len(gaps) == 1:
            return [0.5], gain
        phi, factorial, right = math.expm1(width) / width - 1, 1.0, []
        for i in range(len(gaps)):
            right.append(phi * factorial / gain)
            factorial *= i + 2
            phi = phi / width - 1 / factorial
        left = np.array(gaps)[None, :] ** np.arange(len(gaps))[:, None]
        weights: list[float] = np.linalg.solve(left, np.array(right)).tolist()
        return weights, gain
