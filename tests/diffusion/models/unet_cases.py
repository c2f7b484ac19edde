"""Configs of U-Nets and ControlNets, tiny and full-size, and inputs: the same for every side."""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from macai.diffusion.models.controlnet import ControlNetConfig, ControlNetModel
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig, UNet2DConditionModel

Config = dict[str, Any]

CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"

# What the files of Stable Diffusion say, as far as it is computed with.
SD1: Config = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
}
SD2 = SD1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
    "sample_size": 96,
}
XL = SD2 | {
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
    "up_block_types": [CROSS_UP, CROSS_UP, UP],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "upcast_attention": None,
    "sample_size": 128,
}
REFINER = XL | {
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    "up_block_types": [UP, CROSS_UP, CROSS_UP, UP],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
}
CONTROLNET = {k: v for k, v in SD1.items() if k not in ("up_block_types", "out_channels")} | {
    "_class_name": "ControlNetModel",
    "class_embed_type": None,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "controlnet_conditioning_channel_order": "rgb",
    "only_cross_attention": False,
}
CONTROLNET_XL = {k: v for k, v in XL.items() if k not in ("up_block_types", "out_channels")} | {
    "_class_name": "ControlNetModel",
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
}

FULL_SIZE: dict[str, Config] = {
    "sd1": SD1,
    "sd1-lcm": SD1 | {"time_cond_proj_dim": 256},
    "sd1-inpaint": SD1 | {"in_channels": 9},
    "sd2": SD2,
    "xl": XL,
    "refiner": REFINER,
    "controlnet": CONTROLNET,
    "controlnet-xl": CONTROLNET_XL,
}
PARAMETERS = {"sd1": 859_520_964, "sd2": 865_910_724, "xl": 2_567_463_684}


def narrowed(config: Config, **changes: object) -> Config:
    """Return a config like `config`, a fortieth as wide."""
    blocks = len(config["block_out_channels"])
    heads = config["attention_head_dim"]
    return (
        config
        | {
            "block_out_channels": [16, 32, 48, 48][:blocks],
            "attention_head_dim": 4 if isinstance(heads, int) else [2, 4, 6, 6][:blocks],
            "cross_attention_dim": 20,
            "norm_num_groups": 8,
            "layers_per_block": 1,
        }
        | changes
    )


_TEXT_TIME: Config = {
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 10 + 6 * 6,
}

KINDS: dict[str, Config] = {
    "sd1": narrowed(SD1, layers_per_block=2),
    "sd2": narrowed(SD2),
    "xl": narrowed(XL, transformer_layers_per_block=[1, 2, 3], **_TEXT_TIME),
    "refiner": narrowed(
        REFINER,
        transformer_layers_per_block=2,
        addition_time_embed_dim=6,
        projection_class_embeddings_input_dim=10 + 5 * 6,
    ),
    "lcm": narrowed(SD1, time_cond_proj_dim=12),
    "inpaint": narrowed(SD1, in_channels=9),
    "ip2p": narrowed(SD1, in_channels=8),
    # The x4 upscaler: noise levels are classes, and most blocks attend only to the text.
    "upscaler": narrowed(
        SD2,
        in_channels=7,
        num_class_embeds=10,
        only_cross_attention=[True, True, True, False],
        down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN],
        up_block_types=[CROSS_UP, CROSS_UP, CROSS_UP, UP],
    ),
    "unclip": narrowed(
        SD2, class_embed_type="projection", projection_class_embeddings_input_dim=14
    ),
    # Distilled models leave out the middle, or give each layer its own number of blocks.
    "small-sd": narrowed(SD1, mid_block_type=None),
    "ssd-1b": narrowed(
        XL,
        layers_per_block=2,
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[[0, 0], [2, 1], [1, 2]],
        reverse_transformer_layers_per_block=[[2, 1, 3], [2, 1, 1], [0, 0, 0]],
        **_TEXT_TIME,
    ),
    "kolors": narrowed(XL, encoder_hid_dim=28, transformer_layers_per_block=1, **_TEXT_TIME),
    "lists": narrowed(
        SD1,
        layers_per_block=[1, 2, 1, 2],
        cross_attention_dim=[20, 20, 20, 20],
        transformer_layers_per_block=[1, 2, 1, 1],
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=14,
        class_embeddings_concat=True,
        resnet_time_scale_shift="scale_shift",
    ),
    "switches": narrowed(
        SD1,
        act_fn="gelu",
        center_input_sample=True,
        class_embed_type="timestep",
        conv_in_kernel=1,
        conv_out_kernel=5,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        mid_block_scale_factor=1.7,
        norm_eps=1e-2,
        time_embedding_act_fn="mish",
        time_embedding_dim=40,
        timestep_post_act="silu",
    ),
    "identity": narrowed(
        SD1, class_embed_type="identity", block_out_channels=[24, 24, 48, 48], act_fn="relu"
    ),
    "controlnet": narrowed(CONTROLNET, conditioning_embedding_out_channels=[4, 6, 8, 10]),
    "controlnet-xl": narrowed(
        CONTROLNET_XL,
        conditioning_embedding_out_channels=[4, 6],
        transformer_layers_per_block=[1, 2, 1],
        num_attention_heads=[2, 2, 4],
        **_TEXT_TIME,
    ),
    "controlnet-shuffle": narrowed(
        CONTROLNET,
        conditioning_channels=5,
        conditioning_embedding_out_channels=[4, 6, 8, 10],
        controlnet_conditioning_channel_order="bgr",
        global_pool_conditions=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=14,
    ),
}


def model_of(config: Config) -> UNet2DConditionModel | ControlNetModel:
    """Return the model of a config, in evaluation mode."""
    model: UNet2DConditionModel | ControlNetModel
    if config["_class_name"] == "ControlNetModel":
        model = ControlNetModel(ControlNetConfig.from_dict(config))
    else:
        model = UNet2DConditionModel(UNet2DConditionConfig.from_dict(config))
    model.eval()
    return model


def inputs_of(
    config: Config, *, size: tuple[int, int] = (8, 8), batch: int = 2, tokens: int = 7
) -> dict[str, np.ndarray]:
    """Return what a model of this config is called with: NHWC, float32, two different times."""

    def drawn(name: str, *shape: int) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return rng.standard_normal((batch, *shape)).astype(np.float32)

    contexts = config["cross_attention_dim"]
    width = config.get("encoder_hid_dim") or np.max(contexts)
    inputs = {
        "sample": drawn("sample", *size, config["in_channels"]),
        "timestep": np.array([981, 3] * batch, np.int32)[:batch],
        "encoder_hidden_states": drawn("states", tokens, int(width)),
    }
    if config["_class_name"] == "ControlNetModel":
        scale = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
        channels = config.get("conditioning_channels", 3)
        picture = drawn("picture", size[0] * scale, size[1] * scale, channels)
        inputs["controlnet_cond"] = picture
    if config.get("addition_embed_type") == "text_time":
        widths = config["projection_class_embeddings_input_dim"]
        numbers = 5 if widths in (10 + 5 * 6, 2560) else 6
        text = widths - numbers * config["addition_time_embed_dim"]
        inputs["text_embeds"] = drawn("text", text)
        sizes = np.array([512, 768, 0, 64, 1024, 1024], np.float32)[:numbers]
        inputs["time_ids"] = np.stack([sizes + row for row in range(batch)])
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = drawn("guidance", config["time_cond_proj_dim"])
    inputs |= _classes(config, drawn, batch)
    return inputs


def _classes(config: Config, drawn: Any, batch: int) -> dict[str, np.ndarray]:
    kind = config.get("class_embed_type")
    if kind == "timestep" or config.get("num_class_embeds"):
        return {"class_labels": np.array([7, 2] * batch, np.int32)[:batch]}
    if kind is None:
        return {}
    identity = 4 * config["block_out_channels"][0]
    width = config.get("projection_class_embeddings_input_dim", identity)
    return {"class_labels": drawn("classes", width)}


def outputs_of(model: Any, inputs: Mapping[str, np.ndarray], **more: Any) -> list[np.ndarray]:
    """Call a model of macai; return its outputs: one of a U-Net, NHWC."""
    arrays = {k: mx.array(v) for k, v in inputs.items()}
    result = model(**arrays, **more)
    if isinstance(result, mx.array):
        return [np.array(result)]
    return [np.array(one) for one in (*result[0], result[1])]


def torch_outputs(model: Any, inputs: Mapping[str, np.ndarray], **more: Any) -> list[np.ndarray]:
    """Call diffusers' model of the same config with the same inputs; return its outputs as NHWC."""
    import torch

    tensors = {
        k: torch.from_numpy(np.ascontiguousarray(v.transpose(0, 3, 1, 2) if v.ndim == 4 else v))
        for k, v in inputs.items()
    }
    added = {k: tensors.pop(k) for k in ("text_embeds", "time_ids") if k in tensors}
    with torch.no_grad():
        result = model(**tensors, added_cond_kwargs=added or None, return_dict=False, **more)
    outputs = result if len(result) == 1 else (*result[0], result[1])
    return [one.permute(0, 2, 3, 1).numpy() for one in outputs]


def torch_model(config: Config, weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """Return diffusers' model of a config on the meta device, or with `weights` as they lie."""
    import diffusers
    import torch

    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(config).eval()
    if weights is not None:
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        model.load_state_dict(tensors, strict=True, assign=True)
    return model


def uniform_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return float32 weights whose layers keep the spread of what they are given; quickly."""
    rng, weights = np.random.default_rng(1), {}
    for name, shape in shapes.items():
        array = rng.random(shape, dtype=np.float32)
        array -= np.float32(0.5)
        if len(shape) > 1:
            array *= np.float32(math.sqrt(12 / math.prod(shape[1:])))
        elif name.endswith("weight"):
            array += 1
        weights[name] = array
    return weights
