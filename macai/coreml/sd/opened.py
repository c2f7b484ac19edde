"""The packages of a bundle, run by macai's own runtime as Apple's Swift package runs them.

TextEncoder.swift, Unet.swift, Encoder.swift, Decoder.swift and ControlNet.swift of
apple/ml-stable-diffusion.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from macai.coreml.sd.form import TEXT_ENCODERS
from macai.coreml.sd.manifest import SdManifest
from macai.coreml.sd.runner import Runner, in_batches
from macai.diffusion.latents import mask_for
from macai.diffusion.random import Noise
from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.tokenizer.vocabulary import END
from macai.errors import PackageError

Arrays = dict[str, np.ndarray]
# The package pads the second encoder's prompt with the token of id 0.
_PADDING = {"TextEncoder": END, "TextEncoder2": "!"}
_CONTROLNETS = "controlnet/"
_LOG_VARIANCE = (-30.0, 20.0)  # Encoder.swift holds it within these


class SdBundle:
    """The packages of a bundle, run by macai's own runtime."""

    def __init__(
        self,
        folder: Path,
        manifest: SdManifest,
        precision: Literal["fp16", "fp32"],
        function: str = "main",
    ) -> None:
        self.manifest, self._folder, self._precision = manifest, folder, precision
        self._function = function
        self.width, self.height = manifest.size(function)
        self.tokenizer = ClipTokenizer.from_folder(folder / "Resources")
        self._opened: dict[str, Runner] = {}

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """Run a package."""
        if name not in self._opened:
            paths = [self._folder / part.package for part in self.manifest.parts(name)]
            self._opened[name] = Runner(paths)
        opened = self._opened[name]
        return opened.run(inputs, precision=self._precision, function=self._function).outputs

    def latents(self) -> tuple[int, int, int]:
        """Return channels, height and width of the latents."""
        _, channels, rows, _ = self.manifest.packages["VAEDecoder"].inputs["z"]["shape"]
        factor = self.manifest.height // rows
        return channels, self.height // factor, self.width // factor

    def told(self, prompts: list[str]) -> Arrays:
        """Return what the U-Net is told of prompts, a row each, but for the time."""
        hidden, pooled = [], np.empty(0)
        for name in TEXT_ENCODERS.values():
            if name not in self.manifest.packages:
                continue
            ids = self.tokenizer.swift_ids(prompts, padding=_PADDING[name]).astype(np.float32)
            said = [self.run(name, {"input_ids": row[None]}) for row in ids]
            first = next(iter(self.manifest.packages[name].outputs))
            hidden.append(np.concatenate([one[first] for one in said]))
            pooled = np.concatenate([one["pooled_outputs"] for one in said])
        states = np.concatenate(hidden, axis=-1).swapaxes(1, 2)[:, :, None]
        told = {"encoder_hidden_states": np.ascontiguousarray(states)}
        if spec := self.manifest.unet_inputs().get("time_ids"):
            width, height = float(self.width), float(self.height)
            last = [height, width] if spec["shape"][1] == 6 else [6.0]  # aesthetic score
            row = np.array([[height, width, 0, 0, *last]], np.float32)
            told |= {"time_ids": np.repeat(row, len(prompts), axis=0), "text_embeds": pooled}
        return told

    @property
    def paints(self) -> bool:
        """Whether its U-Net sees a mask and what the mask leaves, behind the latents."""
        channels, _, _ = self.latents()
        return bool(self.manifest.unet_inputs()["sample"]["shape"][1] != channels)

    def behind(self, picture: np.ndarray | None, mask: np.ndarray | None) -> list[np.ndarray]:
        """Return what an inpainting U-Net sees behind the latents.

        Args:
            picture: float32 [1, H, W, 3] in [-1, 1]; None is grey.
            mask: What of it is made anew, float32 [1, H, W, 1] of 0 and 1; None is all.

        Returns:
            The mask [1, 1, h, w], and the means of the masked picture's latents [1, 4, h, w];
            nothing of a U-Net that is not for inpainting.
        """
        if not self.paints:
            return []
        _, rows, columns = self.latents()
        if picture is None:
            picture = np.zeros((1, self.height, self.width, 3), np.float32)
        if mask is None:
            mask = np.ones((1, self.height, self.width, 1), np.float32)
        means, _ = self._posterior(picture * (mask < 0.5))
        small = np.array(mask_for(mask, rows, columns)).transpose(0, 3, 1, 2)
        return [small, self._normalised(means)]

    def encode(self, picture: np.ndarray, noise: Noise) -> np.ndarray:
        """Return a sample of a picture's latents as the U-Net has them, float32 [1, h, w, 4].

        Args:
            picture: float32 [1, H, W, 3] in [-1, 1].
            noise: What the sample is drawn with, after the first latents'.
        """
        means, deviations = self._posterior(picture)
        drawn = noise.normal(means.shape)
        return self._normalised(means + deviations * drawn).transpose(0, 2, 3, 1)

    def _posterior(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return means and deviations of the encoder's latents, [1, 4, h, w] each."""
        x = np.ascontiguousarray(picture.transpose(0, 3, 1, 2), np.float32)
        means, logs = np.split(self.run("VAEEncoder", {"x": x})["latent"], 2, axis=1)
        return means, np.exp(0.5 * np.clip(logs, *_LOG_VARIANCE))

    def _normalised(self, latents: np.ndarray) -> np.ndarray:
        return (latents - self.manifest.shift_factor) * self.manifest.scaling_factor

    def controlnet(self, name: str) -> str:
        """Return the package of a ControlNet; "" is the only one there is.

        Raises:
            PackageError: there is none of this name, or there are several.
        """
        known = [n for n in self.manifest.packages if n.startswith(_CONTROLNETS)]
        if name == "" and len(known) == 1:
            return known[0]
        if f"{_CONTROLNETS}{name}" in known:
            return f"{_CONTROLNETS}{name}"
        names = ", ".join(one.removeprefix(_CONTROLNETS) for one in known)
        raise PackageError(
            f"no ControlNet '{name}' in this bundle" if name else "which ControlNet?",
            hint=f"it has {names}: NAME=PICTURE" if known else "export it with --controlnet PATH",
        )

    def predict(
        self,
        sample: np.ndarray,
        timestep: float,
        told: Arrays,
        shown: Mapping[str, np.ndarray],
    ) -> np.ndarray:
        """Return what the U-Net predicts, [rows, 4, h, w].

        Args:
            sample: [1, N, h, w].
            timestep: Its time.
            told: A row for each prediction.
            shown: Pictures that ControlNets heed, [1, 3, H, W] in [0, 1], by their packages.
        """

        def run(inputs: Arrays) -> np.ndarray:
            if not shown:
                return self.run("Unet", inputs)["noise_pred"]
            found: Arrays = {}
            for name, picture in shown.items():
                condition = np.repeat(picture, self.manifest.batch, axis=0)
                residuals = self.run(name, inputs | {"controlnet_cond": condition})
                found = {n: found[n] + one if found else one for n, one in residuals.items()}
            return self.run("ControlledUnet", inputs | found)["noise_pred"]

        return in_batches(run, sample, timestep, told, batch=self.manifest.batch)
