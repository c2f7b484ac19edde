"""The forward process in training: noise added, what is to be predicted, how errors are weighed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from macai.diffusion.schedulers import training_options
from macai.diffusion.schedulers.tables import alphas_cumprod
from macai.errors import ModelError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestepChoice:
    """How the amount of noise is drawn.

    Attributes:
        name: "uniform" over all, or "logit-normal" (Esser et al., arXiv:2403.03206).
        mean: Of the logit.
        std: Of the logit.
    """

    name: Literal["uniform", "logit-normal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def quantile(self, share: float, normal: float, count: int) -> int:
        """Return a timestep below `count` of two random numbers, a uniform and a normal one."""
        if self.name == "logit-normal":
            share = 1 / (1 + float(np.exp(-(self.mean + self.std * normal))))
        return min(int(share * count), count - 1)


UNIFORM = TimestepChoice()


class Noising:
    """A model's noise schedule, as training sees it.

    Attributes:
        prediction: "epsilon", "v_prediction" or "sample": what the model predicts.
        count: Timesteps there are.
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        """Read a scheduler_config.json.

        Raises:
            ModelError: it has values that are not known, or asks for what cannot be learnt.
        """
        options = training_options(scheduler_config)
        self.prediction = options.prediction_type
        self.count = options.num_train_timesteps
        self._signal = alphas_cumprod(options).astype(np.float64)
        if self.prediction == "epsilon" and not self._signal.all():
            raise ModelError(
                "scheduler_config.json: no signal is left at the last timestep, where noise cannot "
                "be predicted from",
                hint='with rescale_betas_zero_snr use prediction_type = "v_prediction"',
            )

    def noisy(self, latents: mx.array, noise: mx.array, timesteps: NDArray[np.int64]) -> mx.array:
        """Return latents [B, h, w, C] with noise of the same shape added, at timesteps [B]."""
        signal, rest = self._roots(timesteps)
        return signal * latents + rest * noise

    def target(self, latents: mx.array, noise: mx.array, timesteps: NDArray[np.int64]) -> mx.array:
        """Return what the model is to predict, [B, h, w, C]."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return latents
        signal, rest = self._roots(timesteps)  # Salimans and Ho, arXiv:2202.00512
        return signal * noise - rest * latents

    def weights(self, timesteps: NDArray[np.int64], gamma: float) -> Floats:
        """Return the weight of each squared error, float32 [B]: min-SNR-gamma, or ones for 0.

        min(SNR, gamma) is the weight of the error of the sample (Hang et al., arXiv:2303.09556); of
        the same error seen as one of noise it is that over SNR, of velocity over SNR + 1.
        """
        if not gamma:
            return np.ones(len(timesteps), np.float32)
        signal = self._signal[timesteps]
        with np.errstate(divide="ignore"):
            snr = signal / (1 - signal)
        capped = np.minimum(snr, gamma)
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[self.prediction]
        return (capped / divisor).astype(np.float32)

    def _roots(self, timesteps: NDArray[np.int64]) -> tuple[mx.array, mx.array]:
        signal = self._signal[timesteps].reshape(-1, 1, 1, 1)
        return (
            mx.array(np.sqrt(signal).astype(np.float32)),
            mx.array(np.sqrt(1 - signal).astype(np.float32)),
        )
