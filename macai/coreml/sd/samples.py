"""What the packages are tried with: prompts, noise at some times, latents and pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

from macai.coreml.sd.components import Component
from macai.diffusion.tokenizer import ClipTokenizer

PROMPTS = (
    "",
    "a photo of an astronaut riding a horse on mars, highly detailed",
    "a very long prompt " * 30,
)
STEPS = 20  # of the trajectory whose times are tried

Arrays = dict[str, np.ndarray]


class Samples:
    """Inputs for each component in turn; the U-Net's are of what the text encoder said."""

    def __init__(
        self,
        tokenizer: ClipTokenizer,
        *,
        scaling_factor: float,
        train_timesteps: int = 1000,
        timesteps: int = 5,
    ) -> None:
        """Describe the model.

        Args:
            tokenizer: The text encoder's.
            scaling_factor: Of latents: what the U-Net sees has about the variance 1.
            train_timesteps: How many there are.
            timesteps: How many of a trajectory's 20 are tried.
        """
        self._tokenizer, self._scale = tokenizer, scaling_factor
        chosen = np.linspace(STEPS - 1, 0, min(timesteps, STEPS)).round().astype(int)
        # The spacing that diffusers calls leading, with an offset of 1, as Stable Diffusion has it.
        self.timesteps = [int(k) * (train_timesteps // STEPS) + 1 for k in chosen]
        self._hidden: list[np.ndarray] = []
        self._random = np.random.default_rng(0)

    def of(self, component: Component) -> list[Arrays]:
        """Return float32 inputs to try a component with."""
        shapes = {name: f.shape for name, f in component.inputs.items()}
        match component.name:
            case "TextEncoder":
                ids = self._tokenizer.ids(PROMPTS).astype(np.float32)
                return [{"input_ids": row[None]} for row in ids]
            case "Unet":
                return [self._noisy(shapes, t) for t in self.timesteps]
            case "VAEDecoder":
                return [{"z": self._normal(shapes["z"]) / np.float32(self._scale)}]
            case "VAEEncoder":
                return [{"x": self._picture(shapes["x"])}]
        raise ValueError(f"nothing to try a {component.name} with")

    def heard(self, component: Component, outputs: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Take note of what the model made of the samples."""
        if component.name == "TextEncoder":
            self._hidden = [one["last_hidden_state"] for one in outputs]

    def _noisy(self, shapes: Mapping[str, tuple[int, ...]], t: int) -> Arrays:
        rows = shapes["sample"][0]
        # The negative prompt first, as Swift has it.
        states = np.concatenate(self._hidden[:2])[-rows:].swapaxes(1, 2)[:, :, None]
        return {
            "sample": self._normal(shapes["sample"]),
            "timestep": np.full(shapes["timestep"], t, np.float32),
            "encoder_hidden_states": np.ascontiguousarray(states),
        }

    def _normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._random.standard_normal(shape, np.float32)

    def _picture(self, shape: tuple[int, ...]) -> np.ndarray:
        """Slopes of each colour with some noise on them."""
        _, C, H, W = shape
        y, x = np.mgrid[-1 : 1 : H * 1j, -1 : 1 : W * 1j]
        slopes = np.stack([np.sin((k + 1) * x + (k + 2) * y) for k in range(C)])
        noisy = slopes + 0.1 * self._random.standard_normal(slopes.shape)
        return np.clip(noisy, -1, 1)[None].astype(np.float32)
