"""Adapter files, in PEFT's own format plus the identity of the base they belong to.

`adapter_config.json` and `adapter_model.safetensors` with `base_model.model.<path>.lora_A.weight`
[rank, in] and `lora_B.weight` [out, rank], with DoRA `lora_magnitude_vector` [out], and
`base_model.model.<path>.weight` of modules trained whole; the key "macai" in the config holds the
hashes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai import __version__
from macai.errors import AdapterError
from macai.files import write_json
from macai.models import peft_config
from macai.models.arrays import load_arrays, save_arrays
from macai.models.dora import DoRALinear
from macai.models.identity import Identity, identify
from macai.models.load import LoadedModel
from macai.models.lora import (
    HEAD,
    add_lora,
    linear_paths,
    linear_shape,
    lora_layers,
    matches,
    target_paths,
)
from macai.models.peft_config import PeftConfig
from macai.models.shown import shown
from macai.models.whole import whole_arrays

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
NAME = re.compile(re.escape(PREFIX) + r"(.+)\.(?:lora_[AB]\.weight|lora_magnitude_vector)")
# How PEFT draws A. Its others (pissa, olora, corda, loftq) change the base itself.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What an adapter is, apart from its numbers.

    Attributes:
        sizes: Ranks and scales.
        dropout: Of the inputs of the adapter while it was trained.
        base_name: What the base was called.
        base: Identity of the base it was trained on; None in files of other tools.
        targets: What its layers are called, as `macai.models.lora.target_paths` takes it; None
            where the file says so in another way.
        use_dora: Whether its layers have lengths of their own: `macai.models.dora`.
        modules_to_save: Names of the modules that were trained whole.
    """

    sizes: PeftConfig
    dropout: float
    base_name: str
    base: Identity | None
    targets: tuple[str, ...] | None = None
    use_dora: bool = False
    modules_to_save: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """Return the arguments of `macai.models.lora.add_lora` that follow from it."""
        return {
            "rank": self.sizes.rank,
            "alpha": self.sizes.alpha,
            "rank_pattern": self.sizes.ranks,
            "alpha_pattern": self.sizes.alphas,
            "use_rslora": self.sizes.rank_stabilised,
            "use_dora": self.use_dora,
            "modules_to_save": self.modules_to_save,
        }


def adapter_weights(loaded: LoadedModel) -> dict[str, mx.array]:
    """Return the adapter's arrays by PEFT name: its factors in float32."""
    weights = {}
    for path, layer in lora_layers(loaded.model).items():
        a, b = layer.factors()
        weights[f"{PREFIX}{path}.lora_A.weight"], weights[f"{PREFIX}{path}.lora_B.weight"] = a, b
        if isinstance(layer, DoRALinear):
            weights[f"{PREFIX}{path}.{MAGNITUDE}"] = layer.lora_magnitude_vector
    whole = whole_arrays(loaded.model)
    if is_tied(loaded) and (embedding := f"{embedding_path(loaded)}.weight") in whole:
        whole[f"{HEAD}.weight"] = whole[embedding]  # to PEFT they are two
    return weights | {f"{PREFIX}{name}": array for name, array in whole.items()}


def save_adapter_config(loaded: LoadedModel, folder: Path, config: AdapterConfig) -> None:
    """Write adapter_config.json for the adapter now in the model.

    With PiSSA its ranks are twice those of `config`, and the scales the same.
    """
    layers = lora_layers(loaded.model).values()
    sizes = config.sizes
    if any(layer.factors()[0] is not layer.lora_A for layer in layers):
        sizes = sizes.doubled()
    paths = list(lora_layers(loaded.model))
    names = sorted({p.rpartition(".")[2] for p in paths})
    if set(target_paths(loaded.model, names)) != set(paths):
        names = sorted(paths)
    whole = {n.removeprefix(PREFIX) for n in adapter_weights(loaded) if NAME.fullmatch(n) is None}
    value: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_name,
        "r": sizes.rank,
        "lora_alpha": sizes.alpha,
        "lora_dropout": config.dropout,
        "target_modules": names,
        "rank_pattern": sizes.ranks,
        "alpha_pattern": sizes.alphas,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_dora": config.use_dora,
        "use_rslora": sizes.rank_stabilised,
        # Whole paths: PEFT takes any module whose path ends in these letters.
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "macai": {"version": __version__, "base": config.base.to_json() if config.base else None},
    }
    write_json(folder / CONFIG, value)


def save_adapter_weights(folder: Path, weights: dict[str, mx.array]) -> None:
    """Write adapter_model.safetensors, atomically."""
    save_arrays(folder / WEIGHTS, weights, {"format": "pt"}, checked=True)


def load_adapter(loaded: LoadedModel, folder: Path) -> AdapterConfig:
    """Put the adapter in `folder` into the model, in place.

    Raises:
        AdapterError: files are missing or broken, it belongs to another base, or its names or
            shapes do not fit this one.
    """
    config = read_adapter_config(folder)
    check_base(config, loaded, folder)
    weights = _read_weights(folder / WEIGHTS)
    whole = _whole(weights, config, folder)
    factors = {name: array for name, array in weights.items() if name not in whole}
    paths = _paths(factors, config, folder)
    require_layers(linear_paths(loaded.model), paths, config.targets, folder)
    _require_shapes(loaded, factors, paths, config, folder)
    modules = _whole_modules(loaded, whole, folder)
    options = config.options() | {"modules_to_save": list(modules)}
    add_lora(loaded.model, paths, **options)
    for path, layer in lora_layers(loaded.model).items():
        for name in ("lora_A", "lora_B"):
            layer[name] = weights[f"{PREFIX}{path}.{name}.weight"].astype(mx.float32)
        if isinstance(layer, DoRALinear):
            layer[MAGNITUDE] = weights[f"{PREFIX}{path}.{MAGNITUDE}"].astype(mx.float32)
    for path, arrays in modules.items():
        module = dict(loaded.model.named_modules())[path]
        module.update({name: array.astype(module[name].dtype) for name, array in arrays.items()})
    mx.eval(loaded.model.parameters())
    return config


def read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, tuple[mx.array, mx.array]]]:
    """Return an adapter without its model: A [rank, in] and B [out, rank] by path of the layer.

    Raises:
        AdapterError: files are missing or broken, a shape is not of its rank, or it has more than A
            and B.
    """
    config = read_adapter_config(folder)
    if config.use_dora or config.modules_to_save:
        raise AdapterError(
            f"{folder}: has {'lengths of rows' if config.use_dora else 'whole modules'}, and only "
            "A and B can be put into a package that has room for them",
            hint="fuse it: macai export llm --adapter, or macai fuse",
        )
    weights = _read_weights(folder / WEIGHTS)
    pairs = {}
    for path in _paths(weights, config, folder):
        a, b = (weights[f"{PREFIX}{path}.lora_{x}.weight"] for x in "AB")
        rank = config.sizes.rank_of([path])
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise AdapterError(
                f"{folder}: {path} has A {list(a.shape)} and B {list(b.shape)}, and {CONFIG} says "
                f"rank {rank}"
            )
        pairs[path] = (a, b)
    return config, pairs


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read adapter_config.json; AdapterError names what macai cannot represent."""
    file = folder / CONFIG
    if not file.is_file():
        whole = folder / "model"
        raise AdapterError(
            f"{folder}: no {CONFIG} in it",
            hint=f"all weights were trained there: --model {whole}, without --adapter"
            if (whole / "config.json").is_file()
            else "--adapter takes the folder macai train wrote",
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise peft_config.no_configuration(str(file), e) from e
    value = peft_config.parse_object(text, str(file))
    sizes = peft_config.read_config(value, str(file))
    try:
        modules = tuple(map(str, value.get("modules_to_save") or ()))
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
        sizes=sizes,
        dropout=dropout,
        base_name=str(value.get("base_model_name_or_path") or ""),
        base=base,
        targets=_targets(value),
        use_dora=bool(value.get("use_dora")),
        modules_to_save=modules,
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


def _paths(weights: dict[str, mx.array], config: AdapterConfig, folder: Path) -> list[str]:
    """Return the layers the tensors belong to; AdapterError unless each has A and B, no more.

    With DoRA each has a vector of lengths as well.
    """
    names = {name: NAME.fullmatch(name) for name in weights}
    if unknown := sorted(name for name, match in names.items() if match is None):
        raise AdapterError(
            f"{folder}: {unknown[0]} is no A or B of a linear layer ({len(unknown)} such)"
        )
    paths = sorted({match[1] for match in names.values() if match})
    parts = ["lora_A.weight", "lora_B.weight", *([MAGNITUDE] if config.use_dora else [])]
    expected = [f"{PREFIX}{p}.{part}" for p in paths for part in parts]
    if missing := [name for name in expected if name not in weights]:
        raise AdapterError(
            f"{folder}: {missing[0]} is missing ({len(missing)} such)", hint="is the copy complete?"
        )
    if extra := sorted(weights.keys() - set(expected)):
        raise AdapterError(f"{folder}: {extra[0]} is for DoRA, and {CONFIG} says it has none")
    return paths


def _whole(
    weights: dict[str, mx.array], config: AdapterConfig, folder: Path
) -> dict[str, mx.array]:
    """Return the tensors of modules trained whole, which the config names, by their names."""
    modules = {name: name.removeprefix(PREFIX).rpartition(".")[0] for name in weights}
    found = {
        name: weights[name]
        for name, module in modules.items()
        if name.startswith(PREFIX)
        and NAME.fullmatch(name) is None
        and any(module.endswith(tail) for tail in config.modules_to_save)
    }
    for tail in config.modules_to_save:
        if not any(modules[name].endswith(tail) for name in found):
            raise AdapterError(
                f"{folder}: {CONFIG} names the module {shown(tail)}, {WEIGHTS} has nothing for it",
                hint="is the copy complete?",
            )
    return found


def _whole_modules(
    loaded: LoadedModel, whole: dict[str, mx.array], folder: Path
) -> dict[str, dict[str, mx.array]]:
    """Return arrays by module and name; AdapterError for the first that the model cannot take."""
    arrays = {name.removeprefix(PREFIX): array for name, array in whole.items()}
    embedding, head = f"{embedding_path(loaded)}.weight", f"{HEAD}.weight"
    if is_tied(loaded) and (embedding in arrays or head in arrays):
        one, other = arrays.get(embedding), arrays.pop(head, None)
        if one is None or other is None or not mx.array_equal(one, other).item():
            raise AdapterError(
                f"{folder}: the embedding and the head differ in it, and in the model are one",
                hint="PEFT trains them as one with ensure_weight_tying, when both are named",
            )
    modules, found = dict(loaded.model.named_modules()), dict[str, dict[str, mx.array]]()
    for name, array in arrays.items():
        path, _, leaf = name.rpartition(".")
        own = modules[path].get(leaf) if path in modules else None
        if not isinstance(own, mx.array):
            raise AdapterError(
                f"{folder}: the model has no {shown(name)}", hint="it was made for another model"
            )
        shape = linear_shape(modules[path]) if leaf == "weight" and own.ndim == 2 else own.shape
        if array.shape != shape:
            raise AdapterError(
                f"{folder}: {name} is {list(array.shape)}, the model needs {list(shape)}",
                hint="it was made for another model",
            )
        found.setdefault(path, {})[leaf] = array
    return found


def is_tied(loaded: LoadedModel) -> bool:
    """Return whether one matrix is the embedding and the output head."""
    return HEAD not in dict(loaded.model.named_modules())


def embedding_path(loaded: LoadedModel) -> str:
    """Return the path of the embedding, or nothing if there is none."""
    kinds = (nn.Embedding, nn.QuantizedEmbedding)
    return next((p for p, m in loaded.model.named_modules() if isinstance(m, kinds)), "")


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
    loaded: LoadedModel,
    weights: dict[str, mx.array],
    paths: list[str],
    config: AdapterConfig,
    folder: Path,
) -> None:
    """Raise AdapterError for the first tensor whose shape the model cannot take."""
    modules = dict(loaded.model.named_modules())
    for path in paths:
        out_features, in_features = linear_shape(modules[path])
        rank = config.sizes.rank_of([path])
        shapes = {"lora_A": (rank, in_features), "lora_B": (out_features, rank)}
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            f"{name}.weight": (name, shape) for name, shape in shapes.items()
        }
        if config.use_dora:
            tensors[MAGNITUDE] = (MAGNITUDE, (out_features,))
        for tensor, (name, shape) in tensors.items():
            if (own := weights[f"{PREFIX}{path}.{tensor}"].shape) != shape:
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
