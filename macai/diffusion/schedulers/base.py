"""What all schedulers have in common: a plan of timesteps, and steps taken in turn.

Arrays are mx.array or np.ndarray, float32, of any shape whose first axis is the batch: nearly all
is done with arithmetic operators, so a caller's layout of channels does not matter.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from macai.diffusion.schedulers import tables
from macai.diffusion.schedulers.options import ClippingOptions, Options
from macai.errors import ModelError, UsageError

# mx.array or np.ndarray: a function gets and returns one kind, never a mixture.
Array = Any
NoiseSource = Callable[[tuple[int, ...]], np.ndarray]


def as_float32(x: Array) -> Array:
    """Return the array in float32, the type diffusers steps in."""
    return x.astype(mx.float32) if isinstance(x, mx.array) else np.asarray(x, dtype=np.float32)


def clipped(x: Array, low: Any, high: Any) -> Array:
    return mx.clip(x, low, high) if isinstance(x, mx.array) else np.clip(x, low, high)


def predictions(
    kind: str, output: Array, sample: Array, signal: float, noise: float
) -> tuple[Array, Array]:
    """Return the estimates of the final sample and of the noise in `sample`.

    Args:
        kind: What the model predicts: "epsilon", "sample" or "v_prediction".
        output: What it predicted.
        sample: signal * final sample + noise * standard noise.
        signal: The square root of the share of signal.
        noise: The square root of the share of noise.
    """
    if kind == "epsilon":
        return (sample - noise * output) / signal, output
    if kind == "sample":
        return output, (sample - signal * output) / noise
    return signal * sample - noise * output, signal * output + noise * sample


def bounded(x0: Array, options: ClippingOptions) -> Array:
    """Clip an estimate of the final sample as the options say.

    Thresholding is Imagen's (Saharia et al., arXiv:2205.11487): a quantile of each image's
    magnitudes, at least 1, becomes 1.
    """
    if options.thresholding:
        return thresholded(x0, options.dynamic_thresholding_ratio, options.sample_max_value)
    if options.clip_sample:
        return clipped(x0, -options.clip_sample_range, options.clip_sample_range)
    return x0


def thresholded(x0: Array, ratio: float, largest: float) -> Array:
    """Divide each image by the `ratio` quantile of its magnitudes, between 1 and `largest`."""
    images = np.abs(np.array(x0)).reshape(x0.shape[0], -1)
    limit = np.clip(np.quantile(images, ratio, axis=1), 1, largest).astype(np.float32)
    shaped = limit.reshape(-1, *[1] * (len(x0.shape) - 1))
    bound = mx.array(shaped) if isinstance(x0, mx.array) else shaped
    return clipped(x0, -bound, bound) / bound


class Scheduler(ABC):
    """One way from noise to a sample; reusable: `set_timesteps` and `reset` forget the last run.

    Attributes:
        order: Timesteps a step has: 2 for Heun, which calls the model twice.
        can_reach: Whether it can plan all its steps on a part of the way.
        alphas_cumprod: The share of signal at each training step, float32 [num_train_timesteps].
        timesteps: What to call the model with, in order; whole numbers are int.
        sigmas: Noise over signal of the whole plan, ends included; empty where none are used.
        init_noise_sigma: What standard noise is multiplied by to start from it.
        x0: The estimate of the final sample at the last step taken, for previews; None before one.
        eta: The share of fresh noise a step adds (DDIM, TCD); None where there is no such choice.
    """

    order: ClassVar[int] = 1
    can_reach: ClassVar[bool] = False
    options: Options
    eta: float | None = None

    def __init__(self, options: Options, *, finite_sigmas: bool = False) -> None:
        self.alphas_cumprod = tables.alphas_cumprod(options, finite_sigmas=finite_sigmas)
        self.timesteps: list[float] = []
        self.sigmas: list[float] = []
        self.init_noise_sigma = 1.0
        self.x0: Array = None
        self._plan: list[float] = []
        self._steps = 0
        self._begin = 0
        self._turn = 0
        self._reach = 1.0

    def set_timesteps(
        self,
        steps: int,
        *,
        strength: float | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        all_steps: bool = False,
    ) -> list[float]:
        """Plan a run and forget the one before.

        Args:
            steps: Of the whole way from noise.
            strength: How much of the way to go, in (0, 1]: the start is `steps * strength` steps
                before the end, as in diffusers' image-to-image pipelines.
            denoising_start: What part of the way another model has gone, in (0, 1): the plan begins
                there, whatever `strength` says, as in diffusers' SDXL refiner.
            denoising_end: Where another model goes on, in (0, 1): the plan ends there.
            all_steps: Take all `steps` on the way that `strength` leaves, as diffusers' pipelines
                for latent consistency models do. Only LCM has such plans; others leave steps out.

        Returns:
            The timesteps to run, in order.

        Raises:
            UsageError: Too few or too many steps, or nothing left to run.
            ModelError: Options that cannot be followed over these timesteps.
        """
        trained = self.options.num_train_timesteps
        if not 1 <= steps <= trained:
            raise UsageError(
                f"{steps} steps: this scheduler takes 1 to {trained}", hint="change --steps"
            )
        if strength is not None and not 0 < strength <= 1:
            raise UsageError(f"strength {strength} is not in (0, 1]", hint="0.8 is usual")
        self._steps = steps
        self._reach = 1.0
        if all_steps and self.can_reach and strength is not None:
            self._reach, strength = strength, None
        self._plan = self.plan(steps)
        self._begin = self._start(strength, denoising_start)
        end = len(self._plan)
        if denoising_end is not None:
            cutoff = self._cutoff("denoising_end", denoising_end)
            end = self._begin + sum(t >= cutoff for t in self._plan[self._begin :])
        self.timesteps = self._plan[self._begin : end]
        if not self.timesteps:
            raise UsageError(
                f"no step is left of {steps}",
                hint="raise the steps, or strength, or narrow the cut",
            )
        self.reset()
        return self.timesteps

    def _start(self, strength: float | None, denoising_start: float | None) -> int:
        """Return the index in the plan of the first timestep to run."""
        if denoising_start is not None:
            cutoff = self._cutoff("denoising_start", denoising_start)
            left = sum(t < cutoff for t in self._plan)
            # All of Heun's steps but the first have two timesteps: an odd rest is whole steps.
            left += self.order == 2 and left % 2 == 0
            return len(self._plan) - left
        if strength is None:
            return 0
        return self.skipped(strength) * self.order

    def skipped(self, strength: float) -> int:
        """Return how many steps a run of this strength leaves out."""
        return self._steps - min(int(self._steps * strength), self._steps)

    def _cutoff(self, name: str, share: float) -> int:
        if not 0 < share < 1:
            raise UsageError(f"{name} {share} is not between 0 and 1", hint="0.8 is usual")
        trained = self.options.num_train_timesteps
        return round(trained - share * trained)

    def reset(self) -> None:
        """Forget the steps taken, so that the same plan can be run again."""
        self._turn = 0
        self.x0 = None
        self.forget()

    def scale_model_input(self, sample: Array, i: int) -> Array:
        """Return what the model is called with at `timesteps[i]`; the shape of `sample`."""
        return sample

    def step(
        self, model_output: Array, i: int, sample: Array, *, noise: NoiseSource | None = None
    ) -> Array:
        """Go from the sample of `timesteps[i]` to the next.

        Args:
            model_output: What the model predicted, guidance applied; any float type.
            i: Its index in `timesteps`; steps are taken in turn, from 0.
            sample: Before `scale_model_input`; the shape of `model_output`.
            noise: Draws standard noise of a given shape, for schedulers that add some.

        Returns:
            The next sample, float32; `x0` holds the estimate of the final one.

        Raises:
            ValueError: A step out of turn, or no noise where some is needed.
        """
        if i != self._turn or i >= len(self.timesteps):
            raise ValueError(f"step {i} of {len(self.timesteps)}: step {self._turn} is next")
        self._turn += 1
        return self.advance(
            as_float32(model_output), self._begin + i, as_float32(sample), noise=noise
        )

    def add_noise(self, x0: Array, noise: Array, i: int) -> Array:
        """Return the final sample `x0` as noisy as at `timesteps[i]`; float32, shapes all equal."""
        signal, scale = self.shares(self._begin + i)
        return signal * as_float32(x0) + scale * as_float32(noise)

    def decoded(self, sample: Array) -> Array:
        """Return what to decode into an image once the last step gave `sample`."""
        return sample

    def shares(self, k: int) -> tuple[float, float]:
        """Return the factors of signal and noise in the sample of the plan's timestep `k`."""
        share = self.product(self._plan[k])
        return share**0.5, (1 - share) ** 0.5

    def product(self, timestep: float) -> float:
        """Return the share of signal at a whole training timestep."""
        return float(self.alphas_cumprod[int(timestep)])

    @abstractmethod
    def plan(self, steps: int) -> list[float]:
        """Return the whole run's timesteps; sets `sigmas` and `init_noise_sigma`."""

    @abstractmethod
    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        """Take the step of the whole plan's timestep `k`; sets `x0`."""

    def forget(self) -> None:  # noqa: B027
        """Drop what earlier steps left behind: nothing, where steps do not depend on them."""

    def draw(self, noise: NoiseSource | None, like: Array) -> Array:
        """Return fresh standard noise of the shape and kind of `like`."""
        if noise is None:
            raise ValueError(f"{type(self).__name__} adds noise at each step: pass noise=")
        drawn = np.asarray(noise(tuple(like.shape)), dtype=np.float32)
        return mx.array(drawn) if isinstance(like, mx.array) else drawn

    def check_table(self, timesteps: list[float]) -> None:
        """Refuse timesteps whose share of signal is not in the table, or is zero and a divisor."""
        last = len(self.alphas_cumprod) - 1
        if max(timesteps) > last:
            raise UsageError(
                f"timestep {max(timesteps)} is beyond the model's last, {last}",
                hint=f"take fewer steps: steps_offset is {self.options.steps_offset}",
            )
        if self.options.prediction_type == "epsilon" and self.product(max(timesteps)) == 0:
            raise ModelError(
                "rescale_betas_zero_snr leaves no signal at the first timestep, and a model of "
                "prediction_type epsilon cannot start from that",
                hint="use a model of v_prediction, or a scheduler of sigmas (euler, dpm++2m)",
            )
