"""What a run leaves: LoRA files, or a model in diffusers' layout."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.diffusion.loading import save_folder
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.lora.save import save_diffusers, save_kohya
from macai.diffusion.lora.training import trained_lora
from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.training.base import Base
from macai.errors import TrainingError
from macai.models.arrays import load_arrays, named_arrays, save_arrays

NAME = "trained"  # of the adapter while it is trained; no file has it
DIFFUSERS = "pytorch_lora_weights.safetensors"  # what diffusers looks for in a folder
BEST = "best.safetensors"
MODEL = "model"


def kohya_file(out: Path) -> str:
    """Return the name of the LoRA file for other programs."""
    return f"{out.resolve().name}.kohya.safetensors"


def save_lora(out: Path, components: Mapping[str, nn.Module]) -> None:
    """Write a LoRA as diffusers and as kohya's scripts have it.

    Args:
        out: The folder.
        components: U-Net and text encoders, all that the model has.
    """
    lora, layers = trained_lora(components, NAME), layers_of(components)
    save_diffusers(out / DIFFUSERS, lora, layers)
    save_kohya(out / kohya_file(out), lora, layers)


def save_best(out: Path, model: nn.Module) -> None:
    """Write the trained weights alone."""
    arrays = named_arrays(model.trainable_parameters())
    save_arrays(out / BEST, arrays, {"format": "macai"}, checked=True)


def load_best(out: Path, model: nn.Module) -> None:
    """Give `model` the weights that `save_best` wrote; TrainingError if they are not those now."""
    try:
        arrays, _ = load_arrays(out / BEST)
    except RuntimeError as e:
        raise TrainingError(
            f"{out / BEST}: cannot be read: {e}",
            hint="the best weights are lost: start anew with --force",
        ) from e
    model.update(tree_unflatten(list(arrays.items())))
    mx.eval(model.parameters())


def save_model(
    out: Path,
    base: Base,
    trained: Mapping[str, nn.Module],
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the model with its trained components to a folder; others are the base's.

    A component of the base without weights that was not trained is left out.
    """
    save_folder(_Result(base, trained, configs or {}), out / MODEL, force=True)


@dataclass(frozen=True, slots=True)
class _Result:
    """What save_folder asks for."""

    base: Base
    trained: Mapping[str, nn.Module]
    changed: Mapping[str, Mapping[str, Any]]
    components: list[str] = field(init=False)
    configs: Mapping[str, Mapping[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        has = [n for n in self.base.components if n in self.trained or n in self.base.weights]
        object.__setattr__(self, "components", has)
        object.__setattr__(self, "configs", {**self.base.configs, **self.changed})

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        return self.base.scheduler_config

    @property
    def tokenizer_folders(self) -> Mapping[str, Path | None]:
        return self.base.tokenizer_folders

    def load(self, component: str) -> nn.Module:
        return self.trained.get(component) or self.base.load(component)

    def tokenizer(self, component: str) -> ClipTokenizer:
        return self.base.tokenizer(component)
