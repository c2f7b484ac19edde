"""Write what emoji-diffusion is before it is trained: its tokenizer and the sizes of its models.

python recipes/emoji/make.py --data emoji [--out recipes/emoji]

The tokenizer has those of CLIP's merges that the captions need, so that an embedding of 49,408 rows
does not fill the model: captions get the tokens that CLIP's own tokenizer gives them, other words
fall to smaller pieces.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.tokenizer.vocabulary import (
    END,
    START,
    Vocabulary,
    shipped_vocabulary,
    vocabulary_of,
)

WIDTH = 128
LATENTS = 8
NORM_GROUPS = 8

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": LATENTS,
    "out_channels": LATENTS,
    "block_out_channels": [64, 128],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": NORM_GROUPS,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "sample_size": 64,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": LATENTS,
    "norm_num_groups": NORM_GROUPS,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
    "force_upcast": False,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
"""Stable Diffusion 1's, the only one that Apple's Swift package knows."""

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "requires_safety_checker": False,
}


def text_encoder(tokens: int) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": tokens,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": tokens - 1,
    }


def needed(captions: Iterable[str], whole: Vocabulary) -> Vocabulary:
    """Return the vocabulary with the merges that build the captions' tokens, in CLIP's order.

    That keeps the tokens of a caption: of two neighbours that may be merged the one that comes
    first in CLIP's order is merged first, and it is kept when CLIP itself merges it.
    """
    tokenizer = ClipTokenizer.shipped()
    made = {left + right: (left, right) for left, right in whole.merges}
    waiting = [t for caption in captions for t in tokenizer.tokens(tokenizer.encode(caption))]
    wanted: set[str] = set()
    while waiting:
        token = waiting.pop()
        if token in made and token not in wanted:
            wanted.add(token)
            waiting += made[token]
    return vocabulary_of([pair for pair in whole.merges if "".join(pair) in wanted])


def captions_of(data: Path) -> list[str]:
    """Return the captions of both splits of the Noto data that recipes/data/emoji/make.py wrote."""
    files = [data / "noto" / split / "metadata.jsonl" for split in ("train", "valid")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)["text"] for line in lines]


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((json.dumps(value, indent=2) + "\n").encode())


def make(captions: Sequence[str], out: Path) -> int:
    """Write the folder in diffusers' layout, without weights; return how many tokens it knows."""
    vocabulary = needed(captions, shipped_vocabulary())
    tokens = len(vocabulary.ids)
    write_json(out / "model_index.json", INDEX)
    write_json(out / "unet" / "config.json", UNET)
    write_json(out / "vae" / "config.json", VAE)
    write_json(out / "text_encoder" / "config.json", text_encoder(tokens))
    write_json(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    folder = out / "tokenizer"
    roles = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", roles)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", settings | roles)
    vocabulary.write(folder)
    return tokens


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="what data/emoji/make.py wrote")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args(arguments)
    print(f"{make(captions_of(given.data), given.out)} tokens")


if __name__ == "__main__":
    main()
