"""Tiny text encoders and autoencoders, their weights and inputs: the same numbers for every side.

Weights are drawn by name in torch's layout, so that torch, MLX and the script that writes the
goldens have the same ones and none is stored.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.diffusion.loading.coverage import torch_shapes
from macai.diffusion.loading.sources import diffusers_table
from macai.diffusion.models.layout import to_mlx

TEXT = {
    "vocab_size": 410,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "projection_dim": 48,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 398,
    "eos_token_id": 399,
    "pad_token_id": 1,
}
PLAIN, PROJECTED = (
    {"architectures": ["CLIPTextModel"]},
    {"architectures": ["CLIPTextModelWithProjection"]},
)

# The files of SD 1 (ViT-L), SD 2 (H) and SDXL (bigG), narrowed.
TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "vit-l": TEXT | PLAIN | {"hidden_act": "quick_gelu", "eos_token_id": 2},
    "vit-l-new": TEXT | PLAIN | {"hidden_act": "quick_gelu"},
    "open-clip-h": TEXT | PLAIN | {"hidden_act": "gelu", "num_attention_heads": 2},
    "big-g": TEXT | PROJECTED | {"hidden_act": "gelu", "num_hidden_layers": 4},
    "coarse-eps": TEXT | PROJECTED | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-2},
}

KL = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "sample_size": 64,
    "scaling_factor": 0.18215,
}
TINY = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "encoder_block_out_channels": [8, 8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8, 8],
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
    "latent_channels": 4,
    "scaling_factor": 1.0,
}
VAE_CONFIGS: dict[str, dict[str, Any]] = {
    "sd": KL,
    "xl": KL | {"scaling_factor": 0.13025, "sample_size": 128, "norm_num_groups": 4},
    "f4": KL
    | {
        "block_out_channels": [16, 16, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
    },
    "no-quant-conv": KL
    | {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    },
    "no-attention": KL | {"mid_block_add_attention": False},
    "taesd": TINY,
    "taesd-16": TINY | {"latent_channels": 16, "num_encoder_blocks": [1, 1, 2, 1]},
}


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Return float32 weights by name: each is drawn from its own name and the seed.

    "text_model." counts for nothing, which transformers 5 leaves out.
    """
    weights = {}
    for name, shape in shapes.items():
        key = zlib.crc32(name.removeprefix("text_model.").encode())
        drawn = np.random.default_rng([seed, key]).standard_normal(shape)
        if len(shape) > 1:
            drawn /= math.sqrt(math.prod(shape[1:]))
        elif name.endswith("weight"):
            drawn = 1 + 0.2 * drawn
        else:
            drawn *= 0.2
        weights[name] = drawn.astype(np.float32)
    return weights


def with_random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter of a model of macai its random weight."""
    return loaded(model, random_weights(torch_shapes(model), seed))


def loaded(model: nn.Module, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """Give a model of macai weights of torch under any of their names; all and no others."""
    shapes = torch_shapes(model)
    table = diffusers_table(shapes)
    names = {p: next(s.name for s in table[p] if s.name in weights) for p in shapes}
    assert set(names.values()) == set(weights)
    # A projection may be a linear layer on one side and a 1x1 convolution on the other.
    own = {p: weights[name].reshape(shapes[p]) for p, name in names.items()}
    model.load_weights(list(to_mlx(own).items()), strict=True)
    mx.eval(model.parameters())
    return model


def token_ids(config: Mapping[str, Any], *, pad: int) -> np.ndarray:
    """Return six prompts of several lengths, int32 [6, 77]: begin, words, end, padding.

    The last is cut off at 77 tokens. One has words above the end's id, as learnt concepts are; with
    the legacy id 2 pooling then happens at such a word, in transformers as well.
    """
    begin, end = 398, 399
    rng = np.random.default_rng(7)
    rows = np.full((6, 77), pad, np.int32)
    for row, length in zip(rows, (0, 1, 7, 30, 74, 75), strict=True):
        words = rng.integers(3, 398, length)
        if length == 30:
            words[[4, 20]] = 405
        row[: length + 2] = [begin, *words, end]
    return rows


def image(height: int, width: int, *, batch: int = 1, seed: int = 3) -> np.ndarray:
    """Return pictures float32 [batch, height, width, 3] in [-1, 1]: gradients, edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    pictures = []
    for _ in range(batch):
        angles, centre = rng.uniform(0, 6, 3), rng.uniform(0.3, 0.7, 2)
        waves = [np.sin(9 * (np.cos(a) * x + np.sin(a) * y) + a) for a in angles]
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 0.05
        picture = np.stack(waves, axis=-1) * 0.6 + disc[..., None] * rng.uniform(-0.5, 0.5, 3)
        pictures.append(picture + rng.normal(0, 0.05, picture.shape))
    return np.clip(np.stack(pictures), -1, 1).astype(np.float32)


def psnr(got: np.ndarray | mx.array, wanted: np.ndarray) -> float:
    """Return the ratio of the largest value to the error in dB: infinite if they are equal."""
    got = np.asarray(got, np.float64)
    assert got.shape == wanted.shape, f"{got.shape} instead of {wanted.shape}"
    error = np.sqrt(np.mean((got - wanted) ** 2))
    return float("inf") if error == 0 else float(20 * np.log10(np.abs(wanted).max() / error))
