"""The schedulers of Apple's Swift package ml-stable-diffusion, as its apps run them on a device.

They follow its sources' arithmetic (Scheduler.swift, DPMSolverMultistepScheduler.swift): float32
tables, whole timesteps, the betas of Stable Diffusion and epsilon only; the package does not read
a model's file, so one that says otherwise is refused. They differ from diffusers' namesakes: the
image is decoded from the last estimate of the final sample, the last two DPM++ steps of a short run
are of first order, "leading" counts from 999, and half a timestep is rounded up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from macai.diffusion.schedulers.base import Array, NoiseSource, Scheduler
from macai.diffusion.schedulers.dpm import FEW_STEPS, DPMOptions
from macai.diffusion.schedulers.options import Options, choice
from macai.diffusion.schedulers.pndm import BASHFORTH
from macai.diffusion.schedulers.tables import KARRAS_RHO, Floats
from macai.errors import UsageError

BETA_START, BETA_END, TRAINED = 0.00085, 0.012, 1000
ONE = np.float32(1)


@dataclass(frozen=True, kw_only=True)
class SwiftOptions(Options):
    """What the package takes: its own two choices; anything else must be what it assumes.

    Attributes:
        swift_scheduler: "pndm", the package's default, or "dpmpp".
        swift_timestep_spacing: Of "dpmpp" alone.
    """

    class_name = "the scheduler of Apple's Swift package"

    beta_start: float = BETA_START
    beta_end: float = BETA_END
    beta_schedule: str = choice("scaled_linear", default="scaled_linear")
    prediction_type: str = choice("epsilon", default="epsilon")
    swift_scheduler: str = choice("pndm", "dpmpp", default="pndm")
    swift_timestep_spacing: str = choice("linspace", "leading", "karras", default="linspace")

    def problem(self) -> str | None:
        given = (self.beta_start, self.beta_end, self.num_train_timesteps)
        if given != (BETA_START, BETA_END, TRAINED) or self.trained_betas is not None:
            return f"betas {given} are not those built into the package"
        if self.rescale_betas_zero_snr:
            return "rescale_betas_zero_snr = True: the package does not rescale"
        return None


def swift_choices(config: Mapping[str, Any]) -> dict[str, str]:
    """Return which of the package's schedulers stands for the class a model's file names."""
    if config.get("_class_name") != DPMOptions.class_name:
        return {}
    spacing = "karras" if config.get("use_karras_sigmas") else "linspace"
    chosen = {"swift_scheduler": "dpmpp", "swift_timestep_spacing": spacing}
    return {key: value for key, value in chosen.items() if key not in config}


def linspace(start: float, end: float, count: int) -> Floats:
    """Return evenly spaced values, float32 [count], as the package rounds them."""
    first = np.float32(start)
    scale = (np.float32(end) - first) / np.float32(count - 1)
    return np.arange(count, dtype=np.float32) * scale + first


def weighted(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    """Return the sum of arrays, each times its weight rounded to float32, in the order given."""
    return sum(float(np.float32(w)) * array for w, array in zip(weights, arrays, strict=True))


class SwiftScheduler(Scheduler):
    """What both of the package's schedulers share: tables, img2img, and what is decoded."""

    def __init__(self, options: SwiftOptions) -> None:
        self.options: SwiftOptions = options
        super().__init__(options)
        low, high = np.sqrt(np.array([BETA_START, BETA_END], dtype=np.float32)).tolist()
        betas = linspace(low, high, TRAINED) ** 2
        self.alphas_cumprod = np.cumprod(ONE - betas, dtype=np.float32)
        self._signal: Floats = np.sqrt(self.alphas_cumprod)
        self._noise: Floats = np.sqrt(ONE - self.alphas_cumprod)

    def skipped(self, strength: float) -> int:
        return max(self._steps - int(np.float32(self._steps) * np.float32(strength)), 0)

    def shares(self, k: int) -> tuple[float, float]:
        share = self.alphas_cumprod[int(self._plan[k])]
        return float(np.sqrt(share)), float(np.sqrt(ONE - share))

    def decoded(self, sample: Array) -> Array:
        """Return the last estimate of the final sample: the package decodes that."""
        return self.x0

    def estimate(self, output: Array, sample: Array, index: int) -> Array:
        """Return the estimate of the final sample by the tables' entry `index`."""
        return (sample - output * float(self._noise[index])) / float(self._signal[index])


class SwiftPNDM(SwiftScheduler):
    """Its PNDMScheduler: PLMS with the second timestep called twice."""

    def plan(self, steps: int) -> list[float]:
        if steps < 2:
            raise UsageError("1 step: the package's PNDM traps on fewer than 2", hint="take more")
        falling = np.arange(steps)[::-1] * (TRAINED // steps) + 1
        timesteps: list[float] = [*falling[:2].tolist(), *falling[1:].tolist()]
        return timesteps

    def forget(self) -> None:
        self._called = 0
        self._outputs: list[Array] = []
        self._from: Array = None

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        timestep, stride = int(self._plan[k]), TRAINED // self._steps
        before = timestep - stride
        if self._called == 1:
            before, timestep = timestep, timestep + stride
            sample, mixed = self._from, weighted((0.5, 0.5), (output, self._outputs[-1]))
        else:
            self._outputs = [*self._outputs[-3:], output]
            weights = BASHFORTH[len(self._outputs) - 1]
            mixed = weighted(weights, self._outputs[::-1])
        if self._called == 0:
            self._from = sample
        self._called += 1
        self.x0 = self.estimate(mixed, sample, timestep)
        return weighted(self._coefficients(timestep, before), (sample, mixed))

    def _coefficients(self, timestep: int, before: int) -> tuple[float, float]:
        """Return the factors of sample and prediction, float32: equation 9 of PNDM's paper."""
        share, next_share = self.alphas_cumprod[timestep], self.alphas_cumprod[max(0, before)]
        rest, next_rest = ONE - share, ONE - next_share
        divisor = share * np.sqrt(next_rest) + np.sqrt(share * rest * next_share)
        return float(np.sqrt(next_share / share)), float(-(next_share - share) / divisor)


class SwiftDPM(SwiftScheduler):
    """Its DPMSolverMultistepScheduler: second order, midpoint."""

    def plan(self, steps: int) -> list[float]:
        spacing = self.options.swift_timestep_spacing
        self._signal, self._noise = np.sqrt(self.alphas_cumprod), np.sqrt(ONE - self.alphas_cumprod)
        if spacing == "karras":
            return self._plan_karras(steps)
        if spacing == "leading":
            falling = 1 + np.arange(1, steps + 1)[::-1] * ((TRAINED - 1) // (steps + 1))
        else:
            falling = np.floor(linspace(0, TRAINED - 1, steps + 1)[:0:-1] + np.float32(0.5))
        timesteps: list[float] = falling.astype(np.int64).tolist()
        return timesteps

    def _plan_karras(self, steps: int) -> list[float]:
        """Plan Karras sigmas; the tables are then of steps, the last one twice."""
        if steps < 2:
            raise UsageError("1 step: the package's Karras schedule takes 2", hint="take more")
        shares = self.alphas_cumprod
        table = np.sqrt((ONE - shares) * (ONE / shares))
        power = np.float32(1 / KARRAS_RHO)
        low, high = table[0] ** power, table[-1] ** power
        sigmas = (high + linspace(0, 1, steps) * (low - high)) ** np.float32(KARRAS_RHO)
        logs, wanted = np.log(table), np.log(sigmas)
        below = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
        weight = np.clip((logs[below] - wanted) / (logs[below] - logs[below + 1]), 0, 1)
        at = (ONE - weight) * below.astype(np.float32) + weight * (below + 1).astype(np.float32)
        sigmas = np.append(sigmas, sigmas[-1])
        self._signal = ONE / np.sqrt(ONE + sigmas**2)
        self._noise = sigmas * self._signal
        timesteps: list[float] = np.floor(at + np.float32(0.5)).astype(np.int64).tolist()
        return timesteps

    def forget(self) -> None:
        self._kept: list[Array] = []

    def _index(self, timestep: float) -> int:
        """Return where in the tables a timestep stands; the first, where Karras steps repeat it."""
        if self.options.swift_timestep_spacing != "karras":
            return int(timestep)
        return self._plan.index(timestep) if timestep in self._plan else 0

    def _log_ratio(self, index: int) -> float:
        return float(np.log(self._signal[index]) - np.log(self._noise[index]))

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        # The package looks the timestep up, so a repeated one is stepped as its first.
        place = self._plan.index(self._plan[k])
        left = len(self._plan) - place
        here = self._index(self._plan[place])
        there = self._index(self._plan[place + 1] if left > 1 else 0)
        self.x0 = self.estimate(output, sample, here)
        first_order = not self._kept or (left <= 2 and len(self._plan) < FEW_STEPS)
        self._kept = [*self._kept, self.x0][-2:]
        width = self._log_ratio(there) - self._log_ratio(here)
        decay = float(self._noise[there]) / float(self._noise[here])
        gain = -float(self._signal[there]) * float(np.expm1(-width))
        if first_order:
            return weighted((decay, gain), (sample, self.x0))
        if place == 0:
            raise UsageError("the package traps on a first timestep twice", hint="take fewer steps")
        earlier = self._log_ratio(here) - self._log_ratio(self._index(self._plan[place - 1]))
        inverse = width / earlier
        slope = weighted((inverse, -inverse), self._kept[::-1])
        return weighted((decay, gain, gain / 2), (sample, self.x0, slope))


def make_swift(options: SwiftOptions) -> SwiftScheduler:
    """Return the scheduler that the options choose."""
    return SwiftPNDM(options) if options.swift_scheduler == "pndm" else SwiftDPM(options)
