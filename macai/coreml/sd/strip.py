"""Pictures at the end of a trajectory side by side, and eight times what differs."""

from collections.abc import Callable, Mapping

import mlx.nn as nn
import numpy as np

from macai.coreml.sd.component import Component
from macai.coreml.sd.verify import reference
from macai.diffusion.images import to_bytes
from macai.diffusion.models.autoencoder_kl import AutoencoderKLConfig

Decode = Callable[[np.ndarray], np.ndarray]


def pictures(finals: Mapping[str, np.ndarray], decode: Decode) -> np.ndarray:
    """Return pictures of latents side by side, and what differs between the first and the last.

    Args:
        finals: Latents [1, 4, h, w] by whose they are, the model's first.
        decode: Latents to a picture, float32 [H, W, 3] about [-1, 1].

    Returns:
        uint8 [H, N W, 3].
    """
    made = [decode(latents) for latents in finals.values()]
    differs = np.clip(8 * np.abs(made[-1] - made[0]) - 1, -1, 1)
    strip: np.ndarray = to_bytes(np.concatenate([*made, differs], axis=1)[None])[0]
    return strip


def decoder(component: Component, module: nn.Module, vae: AutoencoderKLConfig) -> Decode:
    """Return what decodes latents as the U-Net has them by the model's own decoder."""

    def decode(latents: np.ndarray) -> np.ndarray:
        z = latents / vae.scaling_factor + (vae.shift_factor or 0.0)
        (result,) = reference(component, module, [{"z": z.astype(np.float32)}])
        return np.ascontiguousarray(result["image"][0].transpose(1, 2, 0))

    return decode
