"""The components of Stable Diffusion with the names, shapes and types that Apple's package reads.

Facts from apple/ml-stable-diffusion: TextEncoder.swift, TextEncoderXL.swift, Unet.swift,
Decoder.swift, Encoder.swift and torch2coreml.py. Core ML's side is NCHW, MLX's NHWC: each function
here turns what goes in and comes out. All outputs are float32; floats go in as float16 where the
program is float16, but for token ids, which Swift feeds as floats and float16 could not tell apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from macai.coreml.sd.component import Call, Component, Feature, to_first, to_last, wide
from macai.coreml.sd.denoisers import controlled_unet, controlnet, unet
from macai.coreml.sd.form import (
    DTYPES,
    TEXT_ENCODERS,
    Configs,
    Form,
    picture_size,
    text_length,
    text_names,
    time_ids,
)
from macai.diffusion.models.autoencoder_kl import AutoencoderKLConfig

TARGET = "iOS16"  # the first whose inputs may be float16; apps read its operations' names
MINIMUM_OS = {"iOS": "16.0", "macOS": "13.0"}
MINIMUM_OS_XL = {"iOS": "17.0", "macOS": "14.0"}  # StableDiffusionXLPipeline's


def components(
    configs: Configs, form: Form, controlnets: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Component]:
    """Return the packages of a model with these configs; those of one module are neighbours.

    Args:
        configs: By diffusers' names of the model's parts.
        form: What was chosen.
        controlnets: The configs of ControlNets by the names their packages get.

    Raises:
        ExportError: a U-Net or ControlNet with inputs that Apple's package does not feed.
        UsageError: a size or a guidance the model has not.
    """
    width, height = picture_size(configs, form)
    size, nets = (height, width), controlnets or {}
    return [
        *(_text_encoder(configs, name, form) for name in text_names(configs)),
        *(controlnet(name, config, configs, form, size) for name, config in nets.items()),
        unet(configs, form, size),
        *([controlled_unet(configs, form, size)] if nets else []),
        _decoder(configs, form, size),
        _encoder(configs, form, size),
    ]


def _text_encoder(configs: Configs, part: str, form: Form) -> Component:
    is_xl = time_ids(configs) is not None
    hidden = "hidden_embeds" if is_xl else "last_hidden_state"

    def call(model: Any) -> Call:
        def encode(input_ids: mx.array) -> Sequence[mx.array]:
            out = model(input_ids.astype(mx.int32))
            states = out.hidden_states[-2] if is_xl else out.last_hidden_state
            pooled = out.pooled_output if out.text_embeds is None else out.text_embeds
            return wide(states), wide(pooled)

        return encode

    return Component(
        name=TEXT_ENCODERS[part],
        part=part,
        inputs={"input_ids": Feature((1, text_length(configs)), mx.float32, "Token ids")},
        outputs={
            hidden: "Hidden states of the tokens",
            "pooled_outputs": "The hidden state at the end of the text",
        },
        call=call,
        precision=form.precision,
        about="A text encoder of Stable Diffusion: a prompt to what the U-Net is told",
    )


def _decoder(configs: Configs, form: Form, size: tuple[int, int]) -> Component:
    vae = AutoencoderKLConfig.from_dict(configs["vae"])
    latents = (1, vae.latent_channels, *(side // vae.spatial_scale_factor for side in size))
    overflows = time_ids(configs) is not None and vae.force_upcast
    precision = "fp32" if overflows else form.precision

    def call(model: Any) -> Call:
        return lambda z: [wide(to_first(model.decode(to_last(z))))]

    return Component(
        name="VAEDecoder",
        part="vae",
        inputs={
            "z": Feature(
                latents, DTYPES[precision], "Latents divided by scaling_factor, + shift_factor"
            )
        },
        outputs={"image": "The picture, [-1, 1], red, green, blue"},
        call=call,
        precision=precision,
        about="The decoder of Stable Diffusion's autoencoder: latents to a picture",
    )


def _encoder(configs: Configs, form: Form, size: tuple[int, int]) -> Component:
    vae = AutoencoderKLConfig.from_dict(configs["vae"])
    # XL's in any case: Apple's package feeds it float32, whichever the decoder is.
    precision = form.precision if time_ids(configs) is None else "fp32"

    def call(model: Any) -> Call:
        return lambda x: [wide(to_first(model.moments(to_last(x))))]

    return Component(
        name="VAEEncoder",
        part="vae",
        inputs={
            "x": Feature((1, vae.in_channels, *size), DTYPES[precision], "A picture in [-1, 1]")
        },
        outputs={"latent": "Means, then log variances, of the latents"},
        call=call,
        precision=precision,
        about="The encoder of Stable Diffusion's autoencoder: a picture to its latents",
    )
