"""The model that training starts from: weights where there are some, else random ones."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.fingerprint import fingerprint
from macai.diffusion.loading import Checkpoint, open_checkpoint
from macai.diffusion.loading.contents import COMPONENTS, TOKENIZERS
from macai.diffusion.loading.folder import CONFIG, INDEX, SCHEDULER, component_of, read_json
from macai.diffusion.models import from_config
from macai.diffusion.tokenizer import ClipTokenizer
from macai.errors import ModelError

TEXT = ("text_encoder", "text_encoder_2")
RANDOM_HINT = 'diffusion.init = "random" begins with random weights where there are none'


@dataclass(frozen=True, slots=True)
class Base:
    """A model whose components have weights, or configs only.

    Attributes:
        path: Of the model.
        configs: Of each component; of "pipeline", what model_index.json says besides them.
        scheduler_config: The scheduler_config.json.
        tokenizer_folders: Of "tokenizer" and "tokenizer_2"; None where there is none.
        weights: The checkpoint of each component that has weights, and its name there.
    """

    path: Path
    configs: Mapping[str, Mapping[str, Any]]
    scheduler_config: Mapping[str, Any]
    tokenizer_folders: Mapping[str, Path | None]
    weights: Mapping[str, tuple[Checkpoint, str]] = field(default_factory=dict)

    @property
    def components(self) -> Iterable[str]:
        """The components there are, with weights or without."""
        return [name for name in COMPONENTS if name in self.configs]

    @property
    def text_encoders(self) -> list[str]:
        """The names of the text encoders, none, one or two."""
        return [name for name in TEXT if name in self.configs]

    def load(self, component: str, *, dtype: str = "float32", quantize: int = 0) -> nn.Module:
        """Return a component with its weights; ModelError if it has none."""
        if component not in self.weights:
            raise ModelError(
                f"{self.path}: {component} has no weights, and is not trained",
                hint="give a model that has them; diffusion.vae names one with an autoencoder, "
                "diffusion.text_encoder trains the text encoders",
            )
        checkpoint, name = self.weights[component]
        return checkpoint.load(name, dtype=dtype, quantize=quantize or None)

    def start(self, component: str, *, seed: int) -> nn.Module:
        """Return a component to be trained, float32: with its weights or with random ones."""
        if component in self.weights:
            return self.load(component)
        mx.random.seed(seed)
        model = from_config(self.configs[component])
        mx.eval(model.parameters())
        return model

    def tokenizer(self, component: str) -> ClipTokenizer:
        """Return the tokenizer of a text encoder."""
        if component in self.weights and self.weights[component][1] == component:
            return self.weights[component][0].tokenizer(component)
        folder = self.tokenizer_folders.get(TOKENIZERS[component])
        return ClipTokenizer.shipped() if folder is None else ClipTokenizer.from_folder(folder)

    def name(self, *components: str) -> str:
        """Return 64 hex digits that other weights, or other configs of random ones, do not have."""
        digest = hashlib.sha256()
        for component in components:
            digest.update(component.encode())
            if component in self.weights:
                checkpoint, name = self.weights[component]
                only = {name: checkpoint.contents.parts[name]}
                contents = replace(checkpoint.contents, parts=only)
                digest.update(fingerprint(replace(checkpoint, contents=contents)).encode())
            else:
                digest.update(json.dumps(self.configs[component], sort_keys=True).encode())
        return digest.hexdigest()


def open_base(path: Path, *, random: bool, vae: Path | None = None) -> Base:
    """Open a model to be trained.

    Args:
        path: What `open_checkpoint` takes; with `random` also a folder of diffusers' layout, or of
            a component alone, in which weights are missing.
        random: Whether weights may be missing.
        vae: Another model, whose autoencoder is used.

    Raises:
        ModelError, FormatError: as `open_checkpoint`.
    """
    try:
        base = _configs(path) if random and path.is_dir() else _checkpoint(path)
    except ModelError as e:
        if random or not any(path.glob(f"*/{CONFIG}")):
            raise
        raise type(e)(e.message, hint=RANDOM_HINT) from e
    if vae is None:
        return base
    other = open_checkpoint(vae)
    if "vae" not in other.configs:
        raise ModelError(
            f"{vae}: no autoencoder in it", hint="diffusion.vae names a model with one"
        )
    return replace(
        base,
        configs={**base.configs, "vae": other.configs["vae"]},
        weights={**base.weights, "vae": (other, "vae")},
    )


def _checkpoint(path: Path) -> Base:
    checkpoint = open_checkpoint(path)
    return Base(
        path,
        checkpoint.configs,
        checkpoint.scheduler_config,
        checkpoint.tokenizer_folders,
        {name: (checkpoint, name) for name in checkpoint.components},
    )


def _configs(path: Path) -> Base:
    """Read a folder whose components may be without weights."""
    folders = {name: path / name for name in COMPONENTS if (path / name / CONFIG).is_file()}
    if (path / CONFIG).is_file():
        folders = {component_of(path / CONFIG, read_json(path / CONFIG)): path}
    if not folders:
        raise ModelError(
            f"{path}: no {CONFIG} of a component in it",
            hint=f"for random weights it has {', '.join(f'{n}/{CONFIG}' for n in COMPONENTS[:3])}",
        )
    configs: dict[str, Mapping[str, Any]] = {}
    weights = {}
    for name, folder in folders.items():
        configs[name] = read_json(folder / CONFIG)
        kind = component_of(folder / CONFIG, configs[name])
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
            weights[name] = open_checkpoint(folder), kind
    index = read_json(path / INDEX) if (path / INDEX).is_file() else {}
    pipeline = {k: v for k, v in index.items() if not isinstance(v, list)}
    xl = "text_encoder_2" in configs
    pipeline.setdefault("_class_name", f"StableDiffusion{'XL' if xl else ''}Pipeline")
    scheduler = path / SCHEDULER
    return Base(
        path,
        configs | {"pipeline": pipeline},
        read_json(scheduler) if scheduler.is_file() else {},
        {
            tokenizer: path / tokenizer if (path / tokenizer).is_dir() else None
            for component, tokenizer in TOKENIZERS.items()
            if component in configs
        },
        weights,
    )


def require(base: Base, *components: str) -> None:
    """Raise ModelError if the model lacks one of `components`."""
    if missing := [name for name in components if name not in base.configs]:
        raise ModelError(
            f"{base.path}: no {' and no '.join(missing)} in it",
            hint="training wants the whole model: the folder with model_index.json, or one file",
        )
