"""The packages that take noise out: the U-Net, one that heeds ControlNets, and ControlNets.

Facts from apple/ml-stable-diffusion: Unet.swift, ControlNet.swift and torch2coreml.py.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from macai.coreml.graph import Pass
from macai.coreml.passes import PASSES
from macai.coreml.passes.pictures_first import pictures_and_rows_first, pictures_first
from macai.coreml.passes.wide_norms import wide_norms
from macai.coreml.sd.component import Call, Component, Feature, to_first, to_last, wide
from macai.coreml.sd.form import DTYPES, Configs, Form, text_length, text_names, time_ids
from macai.diffusion.conditioning import guidance_embedding
from macai.diffusion.models.autoencoder_kl import AutoencoderKLConfig
from macai.diffusion.models.denoiser_config import ControlNetConfig, DenoiserConfig
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig
from macai.errors import ExportError, UsageError

_CHUNK = 512  # rows of split_einsum_v2: attention.py of apple/ml-stable-diffusion
RESIDUAL = "additional_residual_"
_Size = tuple[int, int]
_OF_SIZE = ("time_ids", "text_embeds")


def unet(configs: Configs, form: Form, size: _Size) -> Component:
    """Return the U-Net; `size` is height and width in pixels.

    Raises:
        ExportError: it has inputs that Apple's package does not feed.
        UsageError: the form has a guidance, and the model takes none.
    """
    config = UNet2DConditionConfig.from_dict(configs["unet"])
    _check_unet(config, form)
    condition = _condition(config, form)

    def call(model: Any) -> Call:
        def predict(
            sample: mx.array, timestep: mx.array, states: mx.array, *of_size: mx.array
        ) -> Sequence[mx.array]:
            extra = dict(zip(_OF_SIZE, of_size, strict=False))
            noise = model(
                to_last(sample), timestep, _rows(states), timestep_cond=condition, **extra
            )
            return [wide(to_first(noise))]

        return predict

    return Component(
        name="Unet",
        part="unet",
        inputs=_inputs(configs, config, form, size),
        outputs={"noise_pred": "What the scheduler calls the model's output"},
        call=call,
        precision=form.precision,
        about="The U-Net of Stable Diffusion: predicts the noise in latents",
        passes=_passes(form.attention),
    )


def controlled_unet(configs: Configs, form: Form, size: _Size) -> Component:
    """Return the U-Net that adds to its skips what ControlNets found."""
    config = UNet2DConditionConfig.from_dict(configs["unet"])
    _check_unet(config, form)
    condition = _condition(config, form)

    def call(model: Any) -> Call:
        def predict(
            sample: mx.array, timestep: mx.array, states: mx.array, *residuals: mx.array
        ) -> Sequence[mx.array]:
            *skips, middle = map(to_last, residuals)
            noise = model(
                to_last(sample),
                timestep,
                _rows(states),
                timestep_cond=condition,
                down_block_additional_residuals=skips,
                mid_block_additional_residual=middle,
            )
            return [wide(to_first(noise))]

        return predict

    dtype = DTYPES[form.precision]
    shapes = _residuals(config, (form.batch, *_latents(configs, size)))
    more = {
        f"{RESIDUAL}{n}": Feature(
            shape, dtype, "What is added to a skip, or the last to the middle"
        )
        for n, shape in enumerate(shapes)
    }
    return Component(
        name="ControlledUnet",
        part="unet",
        inputs=_inputs(configs, config, form, size) | more,
        outputs={"noise_pred": "What the scheduler calls the model's output"},
        call=call,
        precision=form.precision,
        about="The U-Net of Stable Diffusion with what ControlNets found",
        passes=_passes(form.attention),
    )


def controlnet(
    name: str, config: Mapping[str, Any], configs: Configs, form: Form, size: _Size
) -> Component:
    """Return a ControlNet for the model of `configs`.

    Raises:
        ExportError: Apple's package has no use for it, or it is not for this model.
    """
    own = ControlNetConfig.from_dict(config)
    unet_config = UNet2DConditionConfig.from_dict(configs["unet"])
    latents = (form.batch, *_latents(configs, size))
    shapes = _residuals(own, latents)
    _check_controlnet(name, own, unet_config, shapes == _residuals(unet_config, latents))

    def call(model: Any) -> Call:
        def find(
            sample: mx.array, timestep: mx.array, states: mx.array, picture: mx.array
        ) -> Sequence[mx.array]:
            skips, middle = model(to_last(sample), timestep, _rows(states), to_last(picture))
            return [wide(to_first(one)) for one in (*skips, middle)]

        return find

    picture = Feature(
        (form.batch, own.conditioning_channels, *size),
        DTYPES[form.precision],
        "The picture to heed, [0, 1], red, green, blue",
    )
    return Component(
        name=f"controlnet/{name}",
        part="controlnet",
        inputs=_inputs(configs, own, form, size) | {"controlnet_cond": picture},
        outputs={f"{RESIDUAL}{n}": "To be added in the U-Net" for n in range(len(shapes))},
        call=call,
        precision=form.precision,
        about="A ControlNet of Stable Diffusion: what a picture asks of the U-Net",
        passes=_passes(form.attention),
    )


def _inputs(
    configs: Configs, config: DenoiserConfig, form: Form, size: _Size
) -> dict[str, Feature]:
    dtype, B = DTYPES[form.precision], form.batch
    width = config.encoder_hid_dim or config.per_block(config.cross_attention_dim)[0]
    inputs = {
        "sample": Feature(
            (B, config.in_channels, *_latents(configs, size)),
            dtype,
            "Noisy latents, as the scheduler scales them",
        ),
        "timestep": Feature((B,), dtype, "The time of each row"),
        "encoder_hidden_states": Feature(
            (B, width, 1, text_length(configs)),
            dtype,
            "What the text encoders say, channels on axis 1",
        ),
    }
    count = time_ids(configs)
    if count is not None:
        pooled = configs[text_names(configs)[-1]]["projection_dim"]
        inputs["time_ids"] = Feature((B, count), dtype, "Sizes and crop, as SDXL is told them")
        inputs["text_embeds"] = Feature((B, pooled), dtype, "The last text encoder's pooled output")
    return inputs


def _latents(configs: Configs, size: _Size) -> _Size:
    factor = AutoencoderKLConfig.from_dict(configs["vae"]).spatial_scale_factor
    return size[0] // factor, size[1] // factor


def _residuals(config: DenoiserConfig, latents: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """Return the shapes of what the way down keeps, and of the middle."""
    B, H, W = latents
    channels = config.block_out_channels
    shapes = [(B, channels[0], H, W)]
    for n, (width, layers) in enumerate(zip(channels, config.layers, strict=True)):
        shapes += [(B, width, H, W)] * layers
        if n < len(channels) - 1:
            H, W = H // 2, W // 2
            shapes.append((B, width, H, W))
    return [*shapes, (B, channels[-1], H, W)]


def _passes(attention: str) -> Sequence[Pass]:
    if attention == "original":
        return [*PASSES, wide_norms]
    chunk = _CHUNK if attention == "split_einsum_v2" else None
    rows = partial(pictures_and_rows_first, chunk=chunk)
    return [rows if rewrite is pictures_first else rewrite for rewrite in PASSES]


def _rows(states: mx.array) -> mx.array:
    """[B, C, 1, T] -> [B, T, C]."""
    return states.squeeze(2).swapaxes(1, 2)


def _condition(config: UNet2DConditionConfig, form: Form) -> mx.array | None:
    if config.time_cond_proj_dim is None or form.guidance is None:
        return None
    row = guidance_embedding(form.guidance, config.time_cond_proj_dim)
    condition = mx.repeat(row, form.batch, axis=0)
    mx.eval(condition)
    return condition


def _check_unet(config: UNet2DConditionConfig, form: Form) -> None:
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise ExportError("this U-Net takes classes, and Apple's package has none to give")
    is_lcm = config.time_cond_proj_dim is not None
    if is_lcm and form.guidance is None:
        raise ExportError(
            "this U-Net (of an LCM) takes the guidance, and Apple's package does not give it",
            hint="have one in the package: --guidance 8 --batch 1; or take an LCM as a LoRA",
        )
    if form.guidance is not None and not is_lcm:
        raise UsageError(
            "a guidance in the package is for LCMs that take one",
            hint="apps give this model's to the pipeline",
        )


def _check_controlnet(
    name: str, config: ControlNetConfig, unet_config: UNet2DConditionConfig, fits: bool
) -> None:
    if unet_config.addition_embed_type is not None or config.addition_embed_type is not None:
        raise ExportError(f"ControlNet {name}: Apple's package has none for SDXL")
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise ExportError(f"ControlNet {name} takes classes, and Apple's package has none to give")
    if config.global_pool_conditions:
        raise ExportError(
            f"ControlNet {name} pools what it finds, and Apple's package adds none of this shape"
        )
    widths = config.cross_attention_dim, unet_config.cross_attention_dim
    if not fits or config.per_block(widths[0])[0] != unet_config.per_block(widths[1])[0]:
        raise ExportError(
            f"ControlNet {name} is for a U-Net of another size",
            hint="those of SD1 and of SD2 are not the same",
        )
