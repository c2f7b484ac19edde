"""Write a model in the layout of diffusers: model_index.json and a folder for each component."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.loading.contents import TOKENIZERS
from macai.diffusion.loading.folder import CONFIG, INDEX, SCHEDULER
from macai.diffusion.models.layout import to_torch
from macai.diffusion.tokenizer import ClipTokenizer
from macai.errors import UsageError
from macai.files import atomic_directory, write_json
from macai.models.arrays import named_arrays, save_arrays

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# What the constructors of diffusers' pipelines ask for, if only to be told that there is none.
_ASKED_FOR = {
    "StableDiffusionPipeline": ("feature_extractor", "safety_checker"),
    "StableDiffusionXLPipeline": ("feature_extractor", "image_encoder"),
    "StableDiffusionXLImg2ImgPipeline": ("text_encoder", "tokenizer"),
}


class Source(Protocol):
    """What there is to write: an opened Checkpoint, or Models."""

    @property
    def components(self) -> Iterable[str]: ...
    @property
    def configs(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def scheduler_config(self) -> Mapping[str, Any]: ...
    @property
    def tokenizer_folders(self) -> Mapping[str, Path | None]: ...
    def load(self, component: str) -> nn.Module: ...
    def tokenizer(self, component: str) -> ClipTokenizer: ...


@dataclass(frozen=True, slots=True)
class Models:
    """Models in memory.

    Attributes:
        models: By component, not quantised.
        configs: In diffusers' or transformers' form, of each component, and under "pipeline" what
            model_index.json says besides the components: at least _class_name.
        scheduler_config: With its _class_name.
        tokenizers: Of each text encoder.
    """

    models: Mapping[str, nn.Module]
    configs: Mapping[str, Mapping[str, Any]]
    scheduler_config: Mapping[str, Any]
    tokenizers: Mapping[str, ClipTokenizer] = field(default_factory=dict)

    @property
    def components(self) -> Iterable[str]:
        """The names of the models."""
        return self.models

    @property
    def tokenizer_folders(self) -> Mapping[str, Path | None]:
        """No folders: the tokenizers are written anew."""
        return dict.fromkeys(TOKENIZERS[name] for name in self.tokenizers)

    def load(self, component: str) -> nn.Module:
        """Return a model."""
        return self.models[component]

    def tokenizer(self, component: str) -> ClipTokenizer:
        """Return the tokenizer of a text encoder."""
        return self.tokenizers[component]


def save_folder(source: Source, out: Path, *, force: bool = False) -> None:
    """Write `source` to the folder `out`, complete or not at all.

    Weights keep the type they have, or that the checkpoint was opened with. Memory is that of the
    largest component.

    Raises:
        UsageError: a component is quantised: diffusers has no such files.
        OutputError: `out` exists and `force` is not given, or cannot be written.
        ModelError: as `Checkpoint.load`.
    """
    components = list(source.components)
    with atomic_directory(out, force=force) as folder:
        for component in components:
            _save_component(source, component, folder / component)
        for component, tokenizer in TOKENIZERS.items():
            if component in components and tokenizer in source.tokenizer_folders:
                given = source.tokenizer_folders[tokenizer]
                (folder / tokenizer).mkdir()
                if given is not None:
                    _copy(given, folder / tokenizer)
                else:
                    _write_tokenizer(source.tokenizer(component), folder / tokenizer)
        if source.scheduler_config:
            write_json(folder / SCHEDULER, dict(source.scheduler_config))
        write_json(folder / INDEX, _index(source, components))


def class_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the library and the class that a component's config names."""
    if "_class_name" in config:
        return "diffusers", str(config["_class_name"])
    return "transformers", str(config["architectures"][0])


def _index(source: Source, components: list[str]) -> dict[str, Any]:
    index: dict[str, Any] = dict(source.configs.get("pipeline", {}))
    asked_for = _ASKED_FOR.get(index.get("_class_name", ""), ())
    index |= {name: [None, None] for name in asked_for}
    index |= {name: list(class_of(source.configs[name])) for name in components}
    index |= {name: ["transformers", "CLIPTokenizer"] for name in source.tokenizer_folders}
    if "_class_name" in source.scheduler_config:
        index["scheduler"] = ["diffusers", source.scheduler_config["_class_name"]]
    return index


def _save_component(source: Source, component: str, folder: Path) -> None:
    weights = named_arrays(source.load(component).parameters())
    if any(value.dtype == mx.uint32 for value in weights.values()):
        raise UsageError(
            f"{component} is quantised, and diffusers has no files of such weights",
            hint="open the checkpoint without quantize to save it",
        )
    config = source.configs[component]
    library, _ = class_of(config)
    stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
    made = {name: mx.contiguous(value) for name, value in to_torch(weights).items()}
    save_arrays(folder / f"{stem}.safetensors", made, {"format": "pt"})
    write_json(folder / CONFIG, dict(config))


def _copy(given: Path, folder: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (given / name).is_file():
            shutil.copyfile(given / name, folder / name)


def _write_tokenizer(tokenizer: ClipTokenizer, folder: Path) -> None:
    tokenizer.vocabulary.write(folder)
    start, end, padding = tokenizer.tokens([tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id])
    roles: dict[str, Any] = {
        "bos_token": start,
        "eos_token": end,
        "pad_token": padding,
        "unk_token": end,
    }
    write_json(folder / "special_tokens_map.json", roles)
    write_json(
        folder / "tokenizer_config.json",
        roles
        | {
            "model_max_length": tokenizer.max_length,
            "tokenizer_class": "CLIPTokenizer",
        },
    )
