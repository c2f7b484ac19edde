"""The networks of Stable Diffusion, built from their config.json.

Paths of modules are those of diffusers and transformers, so that names of weights and adapters are
functions of the path. Arrays of images are NHWC; weights come to MLX's layout in layout.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.nn as nn

import macai.models  # noqa: F401  # the fast BLAS
from macai.diffusion.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from macai.diffusion.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from macai.diffusion.models.clip_text import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)
from macai.diffusion.models.controlnet import ControlNetConfig, ControlNetModel
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from macai.errors import ModelError

_MODELS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "AutoencoderKL": lambda c: AutoencoderKL(AutoencoderKLConfig.from_dict(c)),
    "AutoencoderTiny": lambda c: AutoencoderTiny(AutoencoderTinyConfig.from_dict(c)),
    "CLIPTextModel": lambda c: CLIPTextModel(CLIPTextConfig.from_dict(c)),
    "CLIPTextModelWithProjection": lambda c: CLIPTextModelWithProjection(
        CLIPTextConfig.from_dict(c)
    ),
    "ControlNetModel": lambda c: ControlNetModel(ControlNetConfig.from_dict(c)),
    "UNet2DConditionModel": lambda c: UNet2DConditionModel(UNet2DConditionConfig.from_dict(c)),
}


def from_config(config: Mapping[str, Any]) -> nn.Module:
    """Build the model, with random weights, that a config.json of diffusers or transformers names.

    Raises:
        ModelError: a class or a value in the config that is not supported, named.
    """
    architectures = config.get("architectures") or [None]
    name = config.get("_class_name") or architectures[0]
    if name not in _MODELS:
        what = "names no class" if name is None else f"is of a {name}, which is not supported"
        raise ModelError(
            f"a config.json {what}",
            hint=f"_class_name or architectures must be one of {', '.join(sorted(_MODELS))}",
        )
    return _MODELS[name](config)
