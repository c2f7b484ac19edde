"""DDIM (Song et al., arXiv:2010.02502), as diffusers' DDIMScheduler steps."""

from dataclasses import dataclass

from macai.diffusion.schedulers import tables
from macai.diffusion.schedulers.base import Array, NoiseSource, Scheduler, bounded, predictions
from macai.diffusion.schedulers.options import ClippingOptions


@dataclass(frozen=True, kw_only=True)
class DDIMOptions(ClippingOptions):
    class_name = "DDIMScheduler"

    clip_sample: bool = True


class DDIM(Scheduler):
    """Deterministic for `eta` 0; DDPM's noise for `eta` 1."""

    def __init__(self, options: DDIMOptions, *, eta: float = 0.0) -> None:
        self.options: DDIMOptions = options
        super().__init__(options)
        self.eta: float = eta
        self._last_share = 1.0 if options.set_alpha_to_one else self.product(0)

    def plan(self, steps: int) -> list[float]:
        timesteps: list[float] = tables.whole_timesteps(self.options, steps).tolist()
        self.check_table(timesteps)
        return timesteps

    def advance(self, output: Array, k: int, sample: Array, *, noise: NoiseSource | None) -> Array:
        timestep = int(self._plan[k])
        share = self.product(timestep)
        before = timestep - self.options.num_train_timesteps // self._steps
        next_share = self.product(before) if before >= 0 else self._last_share
        x0, epsilon = predictions(
            self.options.prediction_type, output, sample, share**0.5, (1 - share) ** 0.5
        )
        self.x0 = x0 = bounded(x0, self.options)
        deviation = self.eta * ((1 - next_share) / (1 - share) * (1 - share / next_share)) ** 0.5
        direction = (1 - next_share - deviation**2) ** 0.5
        result = next_share**0.5 * x0 + direction * epsilon
        return result + deviation * self.draw(noise, sample) if self.eta > 0 else result
