"""What can be chosen about the packages of a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from macai.diffusion.models.autoencoder_kl import AutoencoderKLConfig
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig
from macai.diffusion.parts import time_ids_of
from macai.errors import UsageError

TEXT_ENCODERS = {"text_encoder": "TextEncoder", "text_encoder_2": "TextEncoder2"}
COMPUTE_UNITS = {
    "original": "cpuAndGPU",
    "split_einsum": "cpuAndNeuralEngine",
    "split_einsum_v2": "cpuAndNeuralEngine",
}
"""Where each way to compute the U-Net's attention is meant to run."""
DTYPES = {"fp16": mx.float16, "fp32": mx.float32}

Configs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What of the packages can be chosen.

    Attributes:
        width: Of a picture in pixels; None is the model's own.
        height: See `width`.
        batch: Rows of the U-Net: 2, negative prompt and prompt at once, or 1.
        precision: "fp16" or "fp32".
        attention: How the U-Net attends, a name in COMPUTE_UNITS.
        guidance: That is in the U-Net of an LCM which takes one; None for all others.
    """

    width: int | None = None
    height: int | None = None
    batch: int = 2
    precision: str = "fp16"
    attention: str = "original"
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise UsageError(
                f"unknown precision '{self.precision}'", hint=f"one of {', '.join(DTYPES)}"
            )
        if self.batch not in (1, 2):
            raise UsageError(f"a U-Net of {self.batch} rows", hint="1 or 2")
        if self.attention not in COMPUTE_UNITS:
            raise UsageError(
                f"unknown attention '{self.attention}'", hint=f"one of {', '.join(COMPUTE_UNITS)}"
            )


def picture_size(configs: Configs, form: Form) -> tuple[int, int]:
    """Return width and height in pixels; UsageError if the model has no such size."""
    unet = UNet2DConditionConfig.from_dict(configs["unet"])
    factor = AutoencoderKLConfig.from_dict(configs["vae"]).spatial_scale_factor
    sample = unet.sample_size or 64
    rows, columns = (sample, sample) if isinstance(sample, int) else sample
    width, height = form.width or columns * factor, form.height or rows * factor
    step = factor * 2 ** (len(unet.block_out_channels) - 1)
    if width % step or height % step:
        raise UsageError(
            f"{width}x{height} pixels: sides must be multiples of {step}",
            hint=f"for instance {_near(width, step)}x{_near(height, step)}",
        )
    return width, height


def text_names(configs: Configs) -> list[str]:
    """Return which text encoders a model has: "text_encoder", "text_encoder_2" or both."""
    return [name for name in TEXT_ENCODERS if name in configs]


def time_ids(configs: Configs) -> int | None:
    """Return how many sizes an XL U-Net is told: 6, or 5 for the refiner; None for other U-Nets."""
    return time_ids_of(configs, text_names(configs))


def text_length(configs: Configs) -> int:
    """Return how many tokens a text encoder takes."""
    return int(configs[text_names(configs)[0]].get("max_position_embeddings", 77))


def _near(side: int, step: int) -> int:
    return max(step, round(side / step) * step)
