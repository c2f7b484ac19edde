"""The components of Stable Diffusion with the names, shapes and types that Apple's package reads.

Facts from apple/ml-stable-diffusion: TextEncoder.swift, TextEncoderXL.swift, Unet.swift,
Decoder.swift, Encoder.swift and torch2coreml.py. Core ML's side is NCHW, MLX's NHWC: each function
here turns what goes in and comes out. All outputs are float32; floats go in as float16 where the
program is float16, but for token ids, which Swift feeds as floats and float16 could not tell apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.coreml.api import ExportFunction
from macai.coreml.description import Metadata
from macai.coreml.graph import Pass
from macai.coreml.lower import Settings
from macai.coreml.passes import PASSES
from macai.coreml.passes.pictures_first import pictures_and_rows_first, pictures_first
from macai.diffusion.models.autoencoder_kl import AutoencoderKLConfig
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig
from macai.diffusion.parts import time_ids_of
from macai.errors import ExportError, UsageError

TARGET = "iOS16"  # the first whose inputs may be float16; apps read its operations' names
MINIMUM_OS = {"iOS": "16.0", "macOS": "13.0"}
MINIMUM_OS_XL = {"iOS": "17.0", "macOS": "14.0"}  # StableDiffusionXLPipeline's
TEXT_ENCODERS = {"text_encoder": "TextEncoder", "text_encoder_2": "TextEncoder2"}
COMPUTE_UNITS = {
    "original": "cpuAndGPU",
    "split_einsum": "cpuAndNeuralEngine",
    "split_einsum_v2": "cpuAndNeuralEngine",
}
"""Where each way to compute the U-Net's attention is meant to run."""
DTYPES = {"fp16": mx.float16, "fp32": mx.float32}

_CHUNK = 512  # rows of split_einsum_v2: attention.py of apple/ml-stable-diffusion

Configs = Mapping[str, Mapping[str, Any]]
Call = Callable[..., Sequence[mx.array]]


@dataclass(frozen=True, slots=True)
class Feature:
    """An input: its shape, its type, and what it is in words."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One package of a bundle.

    Attributes:
        name: What Swift calls it.
        part: What diffusers calls the module it is made of.
        inputs: In the order of the function's arguments.
        outputs: What each is in words, by name.
        call: Takes the module, gives the function.
        precision: "fp16" or "fp32".
        about: What it is, in a sentence.
        passes: What rewrites its graph.
    """

    name: str
    part: str
    inputs: Mapping[str, Feature]
    outputs: Mapping[str, str]
    call: Callable[[Any], Call]
    precision: str
    about: str
    passes: Sequence[Pass] = PASSES

    def function(self, module: nn.Module) -> ExportFunction:
        """Return the function to export, of a module whose weights are in `precision`."""
        return ExportFunction(
            fn=self.call(module),
            inputs={name: mx.zeros(f.shape, f.dtype) for name, f in self.inputs.items()},
            outputs=list(self.outputs),
            weights=module,
            settings=Settings(precision=self.precision, fused_attention=False),
            passes=self.passes,
        )

    def metadata(self, **own: Any) -> Metadata:
        """Return what the package says of itself; `own` are other fields of Metadata."""
        return Metadata(
            description=self.about,
            inputs={name: f.text for name, f in self.inputs.items()},
            outputs=dict(self.outputs),
            **own,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What of the packages can be chosen.

    Attributes:
        width: Of a picture in pixels; None is the model's own.
        height: See `width`.
        batch: Rows of the U-Net: 2, negative prompt and prompt at once, or 1.
        precision: "fp16" or "fp32".
        attention: How the U-Net attends, a name in COMPUTE_UNITS.
    """

    width: int | None = None
    height: int | None = None
    batch: int = 2
    precision: str = "fp16"
    attention: str = "original"

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


def components(configs: Configs, form: Form) -> list[Component]:
    """Return the packages of a model with these configs.

    Raises:
        ExportError: a U-Net with inputs that Apple's package does not feed.
        UsageError: a size the model has not.
    """
    width, height = picture_size(configs, form)
    return [
        *(_text_encoder(configs, name, form) for name in text_names(configs)),
        _unet(configs, form, (height, width)),
        _decoder(configs, form, (height, width)),
        _encoder(configs, form, (height, width)),
    ]


def text_names(configs: Configs) -> list[str]:
    """Return which text encoders a model has: "text_encoder", "text_encoder_2" or both."""
    return [name for name in TEXT_ENCODERS if name in configs]


def time_ids(configs: Configs) -> int | None:
    """Return how many sizes an XL U-Net is told: 6, or 5 for the refiner; None for other U-Nets."""
    return time_ids_of(configs, text_names(configs))


def _text_encoder(configs: Configs, part: str, form: Form) -> Component:
    is_xl = time_ids(configs) is not None
    hidden = "hidden_embeds" if is_xl else "last_hidden_state"

    def call(model: Any) -> Call:
        def encode(input_ids: mx.array) -> Sequence[mx.array]:
            out = model(input_ids.astype(mx.int32))
            states = out.hidden_states[-2] if is_xl else out.last_hidden_state
            pooled = out.pooled_output if out.text_embeds is None else out.text_embeds
            return _wide(states), _wide(pooled)

        return encode

    return Component(
        name=TEXT_ENCODERS[part],
        part=part,
        inputs={"input_ids": Feature((1, _length(configs)), mx.float32, "Token ids")},
        outputs={
            hidden: "Hidden states of the tokens",
            "pooled_outputs": "The hidden state at the end of the text",
        },
        call=call,
        precision=form.precision,
        about="A text encoder of Stable Diffusion: a prompt to what the U-Net is told",
    )


def _unet(configs: Configs, form: Form, size: tuple[int, int]) -> Component:
    config = UNet2DConditionConfig.from_dict(configs["unet"])
    _check_unet(config)

    def call(model: Any) -> Call:
        def predict(
            sample: mx.array, timestep: mx.array, states: mx.array, *of_size: mx.array
        ) -> Sequence[mx.array]:
            states = states.squeeze(2).swapaxes(1, 2)
            extra = dict(zip(("time_ids", "text_embeds"), of_size, strict=False))
            return [_wide(_to_first(model(_to_last(sample), timestep, states, **extra)))]

        return predict

    return Component(
        name="Unet",
        part="unet",
        inputs=_unet_inputs(configs, config, form, size),
        outputs={"noise_pred": "What the scheduler calls the model's output"},
        call=call,
        precision=form.precision,
        about="The U-Net of Stable Diffusion: predicts the noise in latents",
        passes=_passes(form.attention),
    )


def _passes(attention: str) -> Sequence[Pass]:
    if attention == "original":
        return PASSES
    chunk = _CHUNK if attention == "split_einsum_v2" else None
    rows = partial(pictures_and_rows_first, chunk=chunk)
    return [rows if rewrite is pictures_first else rewrite for rewrite in PASSES]


def _unet_inputs(
    configs: Configs, config: UNet2DConditionConfig, form: Form, size: tuple[int, int]
) -> dict[str, Feature]:
    factor = AutoencoderKLConfig.from_dict(configs["vae"]).spatial_scale_factor
    dtype, B = DTYPES[form.precision], form.batch
    width = config.encoder_hid_dim or config.per_block(config.cross_attention_dim)[0]
    latents = (B, config.in_channels, *(side // factor for side in size))
    told = (B, width, 1, _length(configs))
    inputs = {
        "sample": Feature(latents, dtype, "Noisy latents, as the scheduler scales them"),
        "timestep": Feature((B,), dtype, "The time of each row"),
        "encoder_hidden_states": Feature(
            told, dtype, "What the text encoders say, channels on axis 1"
        ),
    }
    count = time_ids(configs)
    if count is not None:
        pooled = configs[text_names(configs)[-1]]["projection_dim"]
        inputs["time_ids"] = Feature((B, count), dtype, "Sizes and crop, as SDXL is told them")
        inputs["text_embeds"] = Feature((B, pooled), dtype, "The last text encoder's pooled output")
    return inputs


def _decoder(configs: Configs, form: Form, size: tuple[int, int]) -> Component:
    vae = AutoencoderKLConfig.from_dict(configs["vae"])
    latents = (1, vae.latent_channels, *(side // vae.spatial_scale_factor for side in size))
    overflows = time_ids(configs) is not None and vae.force_upcast
    precision = "fp32" if overflows else form.precision

    def call(model: Any) -> Call:
        return lambda z: [_wide(_to_first(model.decode(_to_last(z))))]

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
        return lambda x: [_wide(_to_first(model.moments(_to_last(x))))]

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


def _check_unet(config: UNet2DConditionConfig) -> None:
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise ExportError("this U-Net takes classes, and Apple's package has none to give")
    if config.time_cond_proj_dim is not None:
        raise ExportError(
            "this U-Net (of an LCM) takes the guidance, and Apple's package does not give it",
            hint="an LCM as a LoRA needs none: --model BASE --lora lcm-lora.safetensors",
        )


def _length(configs: Configs) -> int:
    return int(configs[text_names(configs)[0]].get("max_position_embeddings", 77))


def _to_last(x: mx.array) -> mx.array:
    return x.transpose(0, 2, 3, 1)


def _to_first(x: mx.array) -> mx.array:
    return x.transpose(0, 3, 1, 2)


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.float32)


def _near(side: int, step: int) -> int:
    return max(step, round(side / step) * step)
