"""Pseudo numerical methods (Liu et al., arXiv:2202.09778), as diffusers' PNDMScheduler steps.

Stable Diffusion skips the Runge-Kutta start (`skip_prk_steps`) and calls the model twice at the
second timestep instead; both starts are here.
"""

from dataclasses import dataclass

import numpy as np

from macai.diffusion.schedulers import tables
from macai.diffusion.schedulers.base import Array, NoiseSource, Scheduler, predictions
from macai.diffusion.schedulers.options import Options, absent, choice
from macai.errors import UsageError

RUNGE_KUTTA_STEPS = 4
# Adams-Bashforth by how many earlier predictions there are, newest first.
BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True, kw_only=True)
class PNDMOptions(Options):
    class_name = "PNDMScheduler"

    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False
    prediction_type: str = choice("epsilon", "v_prediction", default="epsilon")
    rescale_betas_zero_snr: bool = absent()


class PNDM(Scheduler):
    """Linear multistep of order four over the model's predictions."""

    def __init__(self, options: PNDMOptions) -> None:
        self.options: PNDMOptions = options
        super().__init__(options)
        self._last_share = 1.0 if options.set_alpha_to_one else self.product(0)
        self._runge_kutta: list[int] = []

    def plan(self, steps: int) -> list[float]:
        rising = tables.whole_timesteps(self.options, steps)[::-1]
        if self.options.skip_prk_steps:
            self._runge_kutta = []
            repeated = np.concatenate([rising[:-1], rising[-2:-1], rising[-1:]])
            timesteps: list[float] = repeated[::-1].tolist()
        else:
            self._runge_kutta = self._runge_kutta_timesteps(rising)
            timesteps = [*self._runge_kutta, *rising[:-3][::-1].tolist()]
        self.check_table(timesteps)
        return timesteps

    def _runge_kutta_timesteps(self, rising: tables.Ints) -> list[int]:
        """Return the timesteps of the first three steps, four calls each, half way between too."""
        if len(rising) < RUNGE_KUTTA_STEPS:
            raise UsageError(
                f"{len(rising)} steps: without skip_prk_steps this scheduler takes at least 4",
                hint="take more steps, or another scheduler",
            )
        half = self.options.num_train_timesteps // self._steps // 2
        middles = rising[-RUNGE_KUTTA_STEPS:].repeat(2) + np.tile([0, half], RUNGE_KUTTA_STEPS)
        timesteps: list[int] = middles[:-1].repeat(2)[1:-1][::-1].tolist()
        return timesteps

    def forget(self) -> None:
        self._called = 0
        self._outputs: list[Array] = []
        self._sum: Array = 0.0
        self._from: Array = None

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        timestep = int(self._plan[k])
        share = self.product(timestep)
        self.x0, _ = predictions(
            self.options.prediction_type, output, sample, share**0.5, (1 - share) ** 0.5
        )
        if self._called < len(self._runge_kutta):
            result = self._advance_runge_kutta(output, timestep, sample)
        else:
            result = self._advance_multistep(output, timestep, sample)
        self._called += 1
        return result

    def _advance_runge_kutta(self, output: Array, timestep: int, sample: Array) -> Array:
        call = self._called % 4
        half = self.options.num_train_timesteps // self._steps // 2
        start = self._runge_kutta[self._called // 4 * 4]
        if call == 0:
            self._outputs.append(output)
            self._from = sample
        if call == 3:
            output, self._sum = self._sum + output / 6, 0.0
        else:
            self._sum = self._sum + output / (6 if call == 0 else 3)
        return self._transfer(self._from, start, timestep - (0 if call % 2 else half), output)

    def _advance_multistep(self, output: Array, timestep: int, sample: Array) -> Array:
        stride = self.options.num_train_timesteps // self._steps
        if self._called == 1:  # again the first step, now with the mean of both its ends
            mean = (output + self._outputs[-1]) / 2
            return self._transfer(self._from, timestep + stride, timestep, mean)
        if self._called == 0:
            self._from = sample
        self._outputs = [*self._outputs[-3:], output]
        weights = BASHFORTH[len(self._outputs) - 1]
        mixed = sum(
            weight * earlier for weight, earlier in zip(weights, self._outputs[::-1], strict=True)
        )
        return self._transfer(sample, timestep, timestep - stride, mixed)

    def _transfer(self, sample: Array, timestep: int, before: int, output: Array) -> Array:
        """Go from one timestep to an earlier one: equation 9 of the paper."""
        share = self.product(timestep)
        next_share = self.product(before) if before >= 0 else self._last_share
        rest, next_rest = 1 - share, 1 - next_share
        if self.options.prediction_type == "v_prediction":
            output = share**0.5 * output + rest**0.5 * sample
        divisor = share * next_rest**0.5 + (share * rest * next_share) ** 0.5
        return (next_share / share) ** 0.5 * sample - (next_share - share) / divisor * output
