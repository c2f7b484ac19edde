"""Make what is shipped of what was trained: recipes/emoji-diffusion, in half precision.

python recipes/emoji/ship.py --model runs/emoji-unet/model --out recipes/emoji-diffusion
    --lora runs/emoji-fluent/pytorch_lora_weights.safetensors
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from macai.diffusion.loading import open_checkpoint, save_folder
from macai.models.arrays import load_arrays, save_arrays

STYLE = "fluent.safetensors"
LARGEST = 65_504  # of float16


def half(array: mx.array) -> mx.array:
    """Return the array in float16; ValueError if a number in it is too large for that."""
    if mx.abs(array).max().item() > LARGEST:
        raise ValueError("a weight is beyond float16")
    return array.astype(mx.float16)


def ship(model: Path, lora: Path | None, out: Path) -> None:
    """Write a model in diffusers' layout to `out`, and beside it a LoRA; both in float16."""
    save_folder(open_checkpoint(model, dtype="float16"), out, force=True)
    if lora is not None:
        arrays, metadata = load_arrays(lora)
        halved = {name: half(array) for name, array in arrays.items()}
        save_arrays(out / STYLE, halved, metadata)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True, help="what emoji-unet leaves")
    parser.add_argument("--lora", type=Path, help="what emoji-fluent leaves")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    ship(given.model, given.lora, given.out)


if __name__ == "__main__":
    main()
