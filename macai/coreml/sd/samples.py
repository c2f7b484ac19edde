"""What the packages are tried with: prompts, noise at some times, latents and pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

from macai.coreml.sd.component import Component
from macai.diffusion.tokenizer import ClipTokenizer

PROMPT = "a photo of an astronaut riding a horse on mars, highly detailed"
STEPS = 20  # of the trajectory whose times are tried

Arrays = dict[str, np.ndarray]


class Samples:
    """Inputs for each component in turn; the U-Net's are of what the text encoders said."""

    def __init__(
        self,
        tokenizers: Mapping[str, ClipTokenizer],
        *,
        factor: int,
        scaling_factor: float,
        channels: int = 4,
        train_timesteps: int = 1000,
        timesteps: int = 5,
        prompt: str | None = None,
    ) -> None:
        """Describe the model.

        Args:
            tokenizers: Each text encoder's, by the name of its component.
            factor: Pixels a latent is wide.
            scaling_factor: Of latents: what the U-Net sees has about the variance 1.
            channels: Of latents.
            train_timesteps: How many there are.
            timesteps: How many of a trajectory's 20 are tried.
            prompt: What the U-Net is told, beside an empty prompt; None is PROMPT.
        """
        self._prompts = ("", PROMPT if prompt is None else prompt, "a very long prompt " * 30)
        self._tokenizers, self._factor, self._scale = tokenizers, factor, scaling_factor
        chosen = np.linspace(STEPS - 1, 0, min(timesteps, STEPS)).round().astype(int)
        # The spacing that diffusers calls leading, with an offset of 1, as Stable Diffusion has it.
        self.timesteps = [int(k) * (train_timesteps // STEPS) + 1 for k in chosen]
        self._hidden: dict[str, list[np.ndarray]] = {}  # by text encoder, for each prompt
        self._pooled: list[np.ndarray] = []
        self._channels = channels
        self._found: list[Arrays] = []  # by the first ControlNet, and what it was given
        self._random = np.random.default_rng(0)

    def of(self, component: Component) -> list[Arrays]:
        """Return float32 inputs to try a component with."""
        shapes = {name: f.shape for name, f in component.inputs.items()}
        if component.part == "controlnet":
            return [self._noisy(component, t) | self._shown(shapes) for t in self.timesteps]
        match component.name:
            case "TextEncoder" | "TextEncoder2":
                ids = self._tokenizers[component.name].ids(self._prompts).astype(np.float32)
                return [{"input_ids": row[None]} for row in ids]
            case "Unet":
                return [self._noisy(component, t) for t in self.timesteps]
            case "ControlledUnet":
                return [{name: one[name] for name in shapes} for one in self._found]
            case "VAEDecoder":
                return [{"z": self._normal(shapes["z"]) / np.float32(self._scale)}]
            case "VAEEncoder":
                return [{"x": self._picture(shapes["x"])}]
        raise ValueError(f"nothing to try a {component.name} with")

    def heard(
        self, component: Component, given: Sequence[Arrays], outputs: Sequence[Arrays]
    ) -> None:
        """Take note of what the model made of the samples."""
        if component.part == "controlnet" and not self._found:
            self._found = [a | b for a, b in zip(given, outputs, strict=True)]
        if component.name in self._tokenizers:
            hidden = next(iter(component.outputs))
            self._hidden[component.name] = [one[hidden] for one in outputs]
            self._pooled = [one["pooled_outputs"] for one in outputs]

    def told(self, component: Component, *, rows: int = 2) -> Arrays:
        """Return what a U-Net is told, but for the time: of the negative prompt, then the prompt.

        With one row, of the prompt alone.
        """
        told = slice(2 - rows, 2)
        hidden = [np.concatenate(states[told]) for states in self._hidden.values()]
        states = np.concatenate(hidden, axis=-1).swapaxes(1, 2)[:, :, None]
        given = {"encoder_hidden_states": np.ascontiguousarray(states)}
        if "time_ids" in component.inputs:
            *_, h, w = component.inputs["sample"].shape
            height, width = float(h * self._factor), float(w * self._factor)
            count = component.inputs["time_ids"].shape[1]
            last = [height, width] if count == 6 else [6.0]  # aesthetic score
            row = np.array([height, width, 0, 0, *last], np.float32)
            given["time_ids"] = np.repeat(row[None], rows, axis=0)
            given["text_embeds"] = np.concatenate(self._pooled[told])
        return given

    def _noisy(self, component: Component, t: int) -> Arrays:
        shape = component.inputs["sample"].shape
        return {
            "sample": self._latents(shape),
            "timestep": np.full(shape[:1], t, np.float32),
            **self.told(component, rows=shape[0]),
        }

    def _latents(self, shape: tuple[int, ...]) -> np.ndarray:
        """Noise; for inpainting a mask behind it, and what the mask leaves."""
        latents, (more, n) = self._normal(shape), (shape[1], self._channels)
        if more == 2 * n + 1:
            latents[:, n] = latents[:, n] > 0
        return latents

    def _shown(self, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        rows, *shape = shapes["controlnet_cond"]
        picture = self._picture((1, *shape)) / 2 + np.float32(0.5)
        return {"controlnet_cond": np.repeat(picture, rows, axis=0)}

    def _normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._random.standard_normal(shape, np.float32)

    def _picture(self, shape: tuple[int, ...]) -> np.ndarray:
        """Slopes of each colour with some noise on them."""
        _, C, H, W = shape
        y, x = np.mgrid[-1 : 1 : H * 1j, -1 : 1 : W * 1j]
        slopes = np.stack([np.sin((k + 1) * x + (k + 2) * y) for k in range(C)])
        noisy = slopes + 0.1 * self._random.standard_normal(slopes.shape)
        return np.clip(noisy, -1, 1)[None].astype(np.float32)
