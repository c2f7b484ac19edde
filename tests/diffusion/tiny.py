"""A Stable Diffusion of a few thousand weights, random, in diffusers' layout."""

from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from macai.diffusion.loading import Models, save_folder
from macai.diffusion.models import from_config
from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.tokenizer.folder import default_settings
from macai.diffusion.tokenizer.vocabulary import END, START, Vocabulary, letters_by_byte

SIZE = 32  # pixels: latents of 16

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": SIZE,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
    "vocab_size": 514,
    "bos_token_id": 512,
    "eos_token_id": 513,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def letters_tokenizer(max_length: int = 77, padding: str = END) -> ClipTokenizer:
    """Return a tokenizer of single bytes, built in no time."""
    letters = list(letters_by_byte().values())
    words = [*letters, *[f"{letter}</w>" for letter in letters], START, END]
    vocabulary = Vocabulary({word: i for i, word in enumerate(words)}, [])
    return ClipTokenizer(vocabulary, default_settings(padding=padding, max_length=max_length))


def tiny_models(seed: int = 0, **unet: object) -> Models:
    """Return the models; the same seed gives the same weights."""
    configs = {"unet": UNET | unet, "vae": VAE, "text_encoder": TEXT}
    mx.random.seed(seed)
    models = {name: from_config(config) for name, config in configs.items()}
    for model in models.values():
        model.eval()
        # Norms that do something, biases that are not zero.
        model.update(tree_map(lambda x: x + 0.05 * mx.random.normal(x.shape), model.parameters()))
        mx.eval(model.parameters())
    return Models(
        models=models,
        configs=configs | {"pipeline": {"_class_name": "StableDiffusionPipeline"}},
        scheduler_config=SCHEDULER,
        tokenizers={"text_encoder": letters_tokenizer()},
    )


def tiny_pipeline_dir(folder: Path, seed: int = 0, **unet: object) -> Path:
    """Write them to `folder` and return it."""
    save_folder(tiny_models(seed, **unet), folder)
    return folder
