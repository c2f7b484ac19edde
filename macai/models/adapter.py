"""Adapter files, in PEFT's own format plus the identity of the base they belong to.

`adapter_config.json` and `adapter_model.safetensors` with `base_model.model.<path>.lora_A.weight`
[rank, in] and `lora_B.weight` [out, rank]; the key "macai" in the config holds the hashes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from macai import __version__
from macai.errors import AdapterError
from macai.files import write_json
from macai.models import peft_config
from macai.models.arrays import load_arrays, save_arrays
from macai.models.identity import Identity, identify
from macai.models.load import LoadedModel
from macai.models.lora import (
    add_lora,
    linear_paths,
    linear_shape,
    lora_layers,
    matches,
    target_paths,
)

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
NAME = re.compile(re.escape(PREFIX) + r"(.+)\.lora_[AB]\.weight")
# What the layers here have no place for, or what changes them without a tensor of its own.
UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    *peft_config.UNSUPPORTED,
)
# How PEFT draws A. Its others (pissa, olora, corda, loftq) change the base itself.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What an adapter is, apart from its numbers.

    Attributes:
        scale: What B A is multiplied with: alpha / rank, or alpha / sqrt(rank) in rsLoRA files.
        base: Identity of the base it was trained on; None in files of other tools.
        targets: What its layers are called, as `macai.models.lora.target_paths` takes it; None
            where the file says so in another way.
    """

    rank: int
    alpha: float
    scale: float
    dropout: float
    base_name: str
    base: Identity | None
    targets: tuple[str, ...] | None = None


def adapter_weights(loaded: LoadedModel) -> dict[str, mx.array]:
    """Return the adapter's arrays by PEFT name, float32."""
    weights = {}
    for path, layer in lora_layers(loaded.model).items():
        weights[f"{PREFIX}{path}.lora_A.weight"] = layer.lora_A
        weights[f"{PREFIX}{path}.lora_B.weight"] = layer.lora_B
    return weights


def save_adapter_config(loaded: LoadedModel, folder: Path, config: AdapterConfig) -> None:
    """Write adapter_config.json for the adapter now in the model."""
    paths = list(lora_layers(loaded.model))
    names = sorted({p.rpartition(".")[2] for p in paths})
    if set(target_paths(loaded.model, names)) != set(paths):
        names = sorted(paths)
    value: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": names,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "macai": {"version": __version__, "base": config.base.to_json() if config.base else None},
    }
    write_json(folder / CONFIG, value)


def save_adapter_weights(folder: Path, weights: dict[str, mx.array]) -> None:
    """Write adapter_model.safetensors, atomically."""
    save_arrays(folder / WEIGHTS, weights, {"format": "pt"})


def load_adapter(loaded: LoadedModel, folder: Path) -> AdapterConfig:
    """Put the adapter in `folder` into the model, in place.

    Raises:
        AdapterError: files are missing or broken, it belongs to another base, or its names or
            shapes do not fit this one.
    """
    config = read_adapter_config(folder)
    check_base(config, loaded, folder)
    weights = _read_weights(folder / WEIGHTS)
    paths = _paths(weights, folder)
    require_layers(linear_paths(loaded.model), paths, config.targets, folder)
    _require_shapes(loaded, weights, paths, config.rank, folder)
    add_lora(loaded.model, paths, rank=config.rank, alpha=config.scale * config.rank)
    for path, layer in lora_layers(loaded.model).items():
        for name in ("lora_A", "lora_B"):
            layer[name] = weights[f"{PREFIX}{path}.{name}.weight"].astype(mx.float32)
    mx.eval(loaded.model.parameters())
    return config


def read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, tuple[mx.array, mx.array]]]:
    """Return an adapter without its model: A [rank, in] and B [out, rank] by path of the layer.

    Raises:
        AdapterError: files are missing or broken, or a shape is not of its rank.
    """
    config = read_adapter_config(folder)
    weights = _read_weights(folder / WEIGHTS)
    pairs = {}
    for path in _paths(weights, folder):
        a, b = (weights[f"{PREFIX}{path}.lora_{x}.weight"] for x in "AB")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != config.rank or b.shape[1] != config.rank:
            raise AdapterError(
                f"{folder}: {path} has A {list(a.shape)} and B {list(b.shape)}, and {CONFIG} says "
                f"rank {config.rank}"
            )
        pairs[path] = (a, b)
    return config, pairs


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read adapter_config.json; AdapterError names what macai cannot represent."""
    file = folder / CONFIG
    if not file.is_file():
        raise AdapterError(
            f"{folder}: no {CONFIG} in it", hint="--adapter takes the folder macai train wrote"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise peft_config.no_configuration(str(file), e) from e
    value = peft_config.parse_object(text, str(file))
    config = peft_config.read_config(value, str(file), UNSUPPORTED)
    try:
        own = value.get("macai") or {}
        base = Identity(**own["base"]) if own.get("base") else None
        dropout = float(value.get("lora_dropout") or 0.0)
    except peft_config.WRONG_VALUES as e:
        raise peft_config.no_configuration(str(file), e) from e
    unsupported = []
    if value.get("peft_type") != "LORA" or value.get("bias", "none") != "none":
        unsupported.append("peft_type or bias")
    if value.get("init_lora_weights", True) not in PLAIN_STARTS:
        unsupported.append("init_lora_weights")
    if unsupported:
        raise peft_config.not_supported(str(file), unsupported)
    return AdapterConfig(
        rank=config.rank,
        alpha=config.alpha,
        scale=config.scale(),
        dropout=dropout,
        base_name=str(value.get("base_model_name_or_path") or ""),
        base=base,
        targets=_targets(value),
    )


def check_base(config: AdapterConfig, loaded: LoadedModel, folder: Path) -> None:
    """Raise AdapterError if the adapter was trained on another base than `loaded`."""
    if config.base is None:
        return
    actual = identify(loaded.path, chat_template=loaded.tokenizer.chat_template)
    different = [k for k, v in config.base.to_json().items() if actual.to_json()[k] != v]
    if different:
        raise AdapterError(
            f"{folder}: trained on another base: its {' and '.join(different)} differ "
            f"from those of {loaded.path}",
            hint=f"it belongs to '{config.base_name}'",
        )


def _targets(value: dict[str, Any]) -> tuple[str, ...] | None:
    names = value.get("target_modules")
    narrowed = value.get("layers_to_transform") is not None or value.get("exclude_modules")
    return tuple(map(str, names)) if isinstance(names, list) and not narrowed else None


def _paths(weights: dict[str, mx.array], folder: Path) -> list[str]:
    """Return the layers the tensors belong to; AdapterError unless each has A and B, no more."""
    names = {name: NAME.fullmatch(name) for name in weights}
    if unknown := sorted(name for name, match in names.items() if match is None):
        raise AdapterError(
            f"{folder}: {unknown[0]} is no A or B of a linear layer ({len(unknown)} such)"
        )
    paths = sorted({match[1] for match in names.values() if match})
    pairs = [f"{PREFIX}{p}.lora_{x}.weight" for p in paths for x in "AB"]
    if missing := [name for name in pairs if name not in weights]:
        raise AdapterError(
            f"{folder}: {missing[0]} is missing ({len(missing)} such)", hint="is the copy complete?"
        )
    return paths


def require_layers(
    linear: Sequence[str], paths: Sequence[str], targets: tuple[str, ...] | None, folder: Path
) -> None:
    """Raise AdapterError for the first layer that only one of model, tensors and config has."""
    if strange := [p for p in paths if p not in linear]:
        raise AdapterError(
            f"{folder}: the model has no linear layer {strange[0]} ({len(strange)} such)",
            hint="it was made for another model",
        )
    if targets is None:
        return
    named = {p for p in linear if any(matches(p, t) for t in targets)}
    if odd := sorted(named.symmetric_difference(paths)):
        raise AdapterError(
            f"{folder}: {CONFIG} {'names' if odd[0] in named else 'does not name'} {odd[0]}, "
            f"{WEIGHTS} {'has nothing for it' if odd[0] in named else 'has tensors for it'} "
            f"({len(odd)} such)",
            hint="is the copy complete?",
        )


def _require_shapes(
    loaded: LoadedModel, weights: dict[str, mx.array], paths: list[str], rank: int, folder: Path
) -> None:
    """Raise AdapterError for the first tensor whose shape the model cannot take."""
    modules = dict(loaded.model.named_modules())
    for path in paths:
        out_features, in_features = linear_shape(modules[path])
        for name, shape in (("lora_A", (rank, in_features)), ("lora_B", (out_features, rank))):
            if (own := weights[f"{PREFIX}{path}.{name}.weight"].shape) != shape:
                raise AdapterError(
                    f"{folder}: {path}.{name} is {list(own)}, the model needs {list(shape)}",
                    hint="it was made for another model, or another rank than its config says",
                )


def _read_weights(file: Path) -> dict[str, mx.array]:
    if not file.is_file():
        raise AdapterError(
            f"{file.parent}: no {WEIGHTS} in it",
            hint="was its run stopped? macai train --resume goes on with it; or is a file missing?",
        )
    try:
        weights, _ = load_arrays(file)
    except RuntimeError as e:
        raise AdapterError(f"{file}: cannot be read: {e}", hint="is the copy complete?") from e
    if not weights:
        raise AdapterError(f"{file}: holds no tensors")
    return weights
