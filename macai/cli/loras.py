"""LoRA files from a command's options."""

import sys
from collections.abc import Sequence
from pathlib import Path

from macai.cli.image_wanted import parse_numbers
from macai.diffusion.image_settings import UsedFile
from macai.diffusion.loading import Checkpoint
from macai.diffusion.lora.formats import LoraFile, lora_file, read_lora
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.models import from_config
from macai.diffusion.parts import TEXT

Loras = Sequence[tuple[LoraFile, float]]


def read_loras(specs: Sequence[str], checkpoint: Checkpoint) -> tuple[Loras, tuple[UsedFile, ...]]:
    """Read FILE or FILE:SCALE for a model whose weights are not loaded yet; say what matched."""
    if not specs:
        return (), ()
    configs = checkpoint.configs
    lazy = {name: from_config(configs[name]) for name in ("unet", *TEXT) if name in configs}
    layers, loras, used = layers_of(lazy), [], []
    for spec in specs:
        name, numbers = parse_numbers(spec, 1)
        scale = numbers[0] if numbers else 1.0
        file = lora_file(Path(name))
        lora = read_lora(file, layers)
        print(f"LoRA {lora.summary()}", file=sys.stderr)
        loras.append((lora, scale))
        used.append(UsedFile.of(file, scale=scale))
    return loras, tuple(used)
