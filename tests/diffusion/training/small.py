"""A Stable Diffusion small enough to be trained in a test, and pictures to train it on."""

import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from PIL import Image

from macai.diffusion.loading import Models, save_folder
from macai.diffusion.models import from_config
from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.tokenizer.vocabulary import END, START
from macai.files import write_json
from tests.diffusion import tiny

SIZE = 16  # pixels: latents of 8
COLOURS = {"red": (230, 20, 20), "green": (20, 180, 20), "blue": (30, 30, 220), "grey": (90,) * 3}

UNET = tiny.UNET | {"sample_size": SIZE // 2, "mid_block_type": "UNetMidBlock2DCrossAttn"}
UNET |= {"block_out_channels": [8], "down_block_types": ["CrossAttnDownBlock2D"]}
UNET |= {"up_block_types": ["CrossAttnUpBlock2D"]}
VAE = tiny.VAE | {"sample_size": SIZE, "scaling_factor": 1.0}
TEXT = tiny.TEXT | {"max_position_embeddings": 12, "num_hidden_layers": 1}
CONFIGS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}


def tokenizer() -> ClipTokenizer:
    return tiny.letters_tokenizer(max_length=12)


def models(seed: int = 0, **unet: object) -> Models:
    """Return the models; the same seed gives the same weights."""
    configs = CONFIGS | {"unet": UNET | unet}
    mx.random.seed(seed)
    made = {name: from_config(config) for name, config in configs.items()}
    for model in made.values():
        model.eval()
        model.update(tree_map(lambda x: x + 0.05 * mx.random.normal(x.shape), model.parameters()))
        mx.eval(model.parameters())
    quant = made["vae"].quant_conv
    quant.bias = mx.concatenate([quant.bias[:4], quant.bias[4:] - 6])  # latents that say something
    return Models(
        models=made,
        configs=configs | {"pipeline": {"_class_name": "StableDiffusionPipeline"}},
        scheduler_config=tiny.SCHEDULER,
        tokenizers={"text_encoder": tokenizer()},
    )


def model_dir(folder: Path, seed: int = 0, **unet: object) -> Path:
    """Write them to `folder` and return it."""
    save_folder(models(seed, **unet), folder)
    return folder


def xl_dir(folder: Path) -> Path:
    """Write a model of SDXL's kind, with two text encoders, to `folder` and return it."""
    made = models(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        use_linear_projection=True,
    )
    second = TEXT | {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 24}
    encoder = from_config(second | {"hidden_act": "gelu"})
    mx.eval(encoder.parameters())
    configs = {**made.configs, "text_encoder_2": second | {"hidden_act": "gelu"}}
    configs["pipeline"] = {"_class_name": "StableDiffusionXLPipeline"}
    whole = Models(
        {**made.models, "text_encoder_2": encoder},
        configs,
        made.scheduler_config,
        dict.fromkeys(("text_encoder", "text_encoder_2"), tokenizer()),
    )
    save_folder(whole, folder)
    return folder


def config_dir(folder: Path, *components: str) -> Path:
    """Write configs without weights to `folder`, of all components or some, and return it."""
    for name in components or CONFIGS:
        write_json(folder / name / "config.json", CONFIGS[name])
    write_json(folder / "scheduler" / "scheduler_config.json", tiny.SCHEDULER)
    save_tokenizer(folder / "tokenizer")
    return folder


def save_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    own = tokenizer()
    own.write(folder)
    roles = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    write_json(folder / "tokenizer_config.json", roles | {"model_max_length": 12})


def picture(colour: Sequence[int], width: int = SIZE, height: int = SIZE) -> Image.Image:
    """Return a square of a colour on white."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[height // 4 : -height // 4, width // 4 : -width // 4] = colour
    return Image.fromarray(pixels)


def picture_dir(folder: Path, *, captions: str = "txt") -> Path:
    """Write four pictures to `folder` and return it.

    Args:
        folder: A new one.
        captions: "txt", "jsonl" or "none".
    """
    folder.mkdir(parents=True)
    rows = []
    for name, colour in COLOURS.items():
        picture(colour).save(folder / f"{name}.png")
        if captions == "txt":
            (folder / f"{name}.txt").write_text(name, encoding="utf-8")
        rows.append(json.dumps({"file_name": f"{name}.png", "text": name}))
    if captions == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder
