"""Open a folder that diffusers saved: a whole pipeline with model_index.json, or one component."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macai.diffusion.loading.contents import COMPONENTS, TOKENIZERS, Contents, Part, kind_of
from macai.diffusion.loading.weights import open_weights
from macai.errors import FormatError, ModelError
from macai.models.shown import shown
from macai.models.stored import StoredTensor

INDEX, CONFIG = "model_index.json", "config.json"
SCHEDULER = "scheduler/scheduler_config.json"
MAX_JSON_BYTES = 16 << 20

# The classes that may stand alone, and what they are a pipeline's component as.
ALONE = {
    "AutoencoderKL": "vae",
    "AutoencoderTiny": "vae",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
    "ControlNetModel": "controlnet",
    "UNet2DConditionModel": "unet",
}
# Of diffusers and of transformers; a file that cannot hold code is preferred.
_FILES = (
    ("diffusion_pytorch_model", "safetensors"),
    ("model", "safetensors"),
    ("diffusion_pytorch_model", "bin"),
    ("pytorch_model", "bin"),
)
# Whole, or the index of shards: where a variant stands in its name has changed.
_NAMES = (
    "{stem}{variant}.{suffix}",
    "{stem}.{suffix}.index{variant}.json",
    "{stem}.{suffix}{variant}.index.json",
)
_OF_VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|model|pytorch_model)\.(\w+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
# In the pipeline, but nothing that an image is computed with, or not weights.
_WITHOUT = {"safety_checker", "feature_extractor", "scheduler", *TOKENIZERS.values()}


def read_folder(path: Path, *, variant: str | None = None) -> Contents:
    """Read the configs and the weights' headers of `path`, a folder.

    Args:
        path: It holds model_index.json, or the config.json of one component.
        variant: "fp16" for files such as diffusion_pytorch_model.fp16.safetensors. A component
            without such a file is read from its plain one; without a wish, from the only variant
            there is when there is no plain one.

    Raises:
        ModelError: a config or weights are missing, or no component has the variant.
        FormatError: a file is not what its name says.
    """
    if (path / INDEX).is_file():
        return _pipeline(path, variant)
    if not (path / CONFIG).is_file():
        raise ModelError(
            f"{path}: neither {INDEX} nor {CONFIG} in it",
            hint="a diffusers model has the one, a single component the other",
        )
    config = read_json(path / CONFIG)
    component = component_of(path / CONFIG, config)
    part, _ = _part(path, config, variant, required=variant is not None)
    return Contents(kind_of({component: config}), {component: part})


def component_of(file: Path, config: Mapping[str, Any]) -> str:
    """Return which component of a pipeline the model of a config.json is."""
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    name = config.get("_class_name") or named
    if not isinstance(name, str) or name not in ALONE:
        raise ModelError(
            f"{file}: a model of class {shown(name, 60)}, which is none of Stable Diffusion",
            hint=f"known: {', '.join(ALONE)}",
        )
    return ALONE[name]


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object; FormatError if the file is not one or absurdly long."""
    try:
        with file.open("rb") as f:
            data = f.read(MAX_JSON_BYTES + 1)
        value = json.loads(data[:MAX_JSON_BYTES] if len(data) <= MAX_JSON_BYTES else b"")
    except (OSError, ValueError, RecursionError) as e:
        raise FormatError(f"{file}: not readable as JSON: {shown(e)}") from e
    if not isinstance(value, dict):
        raise FormatError(f"{file}: not a JSON object")
    return value


def _pipeline(path: Path, variant: str | None) -> Contents:
    index = read_json(path / INDEX)
    # Each component is [library, class], and [null, null] if the pipeline goes without.
    named = {k for k, v in index.items() if isinstance(v, list) and v and v[0] is not None}
    parts, plain = {}, []
    for name in COMPONENTS:
        if name in named:
            config = read_json(_existing(path / name / CONFIG))
            component_of(path / name / CONFIG, config)
            parts[name], has_variant = _part(path / name, config, variant, required=False)
            if not has_variant:
                plain.append(name)
    if variant is not None and len(plain) == len(parts):
        raise ModelError(
            f"{path}: no file of the variant {variant!r} in it", hint="open it without a variant"
        )
    if not parts:
        raise ModelError(
            f"{path}: {INDEX} names no component of Stable Diffusion",
            hint=f"those are {', '.join(COMPONENTS)}",
        )
    folders = {name: path / name for name in TOKENIZERS.values() if name in named}
    return Contents(
        kind_of({name: part.config for name, part in parts.items()}),
        parts,
        scheduler_config=_scheduler(path),
        pipeline_config={k: v for k, v in index.items() if not isinstance(v, list)},
        tokenizers={name: folder if folder.is_dir() else None for name, folder in folders.items()},
        ignored=dict.fromkeys(sorted(named - _WITHOUT - parts.keys()), 1),
    )


def _scheduler(path: Path) -> dict[str, Any]:
    file = path / SCHEDULER
    return read_json(file) if file.is_file() else {}


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ModelError(f"{file} is missing", hint="is the copy complete?")
    return file


def _part(
    path: Path, config: Mapping[str, Any], variant: str | None, *, required: bool
) -> tuple[Part, bool]:
    """Return a component and whether it is of the variant."""
    found = _find(path, variant) if variant is not None else None
    has_variant = found is not None
    if found is None and not required:
        found = _find(path, None) or _only_variant(path)
    if found is None:
        what = "no weights" if variant is None else f"no weights of the variant {variant!r}"
        raise ModelError(
            f"{path}: {what} in it",
            hint="they are called diffusion_pytorch_model.safetensors or model.safetensors",
        )
    tensors = _shards(found) if found.suffix == ".json" else open_weights(found).tensors
    return Part(config, tensors, found), has_variant


def _find(path: Path, variant: str | None) -> Path | None:
    """Return the weights of a component, or the index of their shards."""
    infix = f".{variant}" if variant is not None else ""
    for stem, suffix in _FILES:
        for name in _NAMES:
            file = path / name.format(stem=stem, suffix=suffix, variant=infix)
            if file.is_file():
                return file
    return None


def _only_variant(path: Path) -> Path | None:
    """Return the weights where all there are have a variant in their names, and the same."""
    matches = (_OF_VARIANT.fullmatch(file.name) for file in path.iterdir())
    variants = {match[1] for match in matches if match}
    return _find(path, variants.pop()) if len(variants) == 1 else None


def _shards(index: Path) -> dict[str, StoredTensor]:
    """Return the tensors of all files that an index names."""
    places = read_json(index).get("weight_map")
    if not places or not isinstance(places, dict) or {type(v) for v in places.values()} != {str}:
        raise FormatError(f"{index}: no weight_map of names of files in it")
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise FormatError(f"{index}: {name[:100]!r} is no name of a file beside it")
        for key, tensor in open_weights(_existing(index.parent / name)).tensors.items():
            if places.get(key) != name:
                raise FormatError(
                    f"{index}: {shown(key)} is in {shown(name)}, where it is not said to be"
                )
            tensors[key] = tensor
    if missing := places.keys() - tensors.keys():
        raise FormatError(
            f"{index}: {len(missing)} tensors are in no file, the first {shown(min(missing))}",
            hint="is the copy complete?",
        )
    return tensors
