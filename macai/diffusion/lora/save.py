"""LoRA files as diffusers writes them, and as kohya's scripts do."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from macai.diffusion.lora.formats import LoraFile
from macai.diffusion.lora.names import (
    TEXT_ENCODER_2,
    TEXT_MODEL,
    UNET,
    Layer,
    Layers,
    Shape,
    kohya_name,
    sgm_paths,
    with_text_model,
)
from macai.diffusion.lora.scales import METADATA_KEY
from macai.diffusion.lora.updates import Hadamard, Kronecker, LowRank, Update
from macai.diffusion.lora.version import model_width
from macai.errors import AdapterError
from macai.models.arrays import save_arrays, scalar

# What kohya's scripts call the base in ss_base_model_version, by the cross-attention's width.
_KOHYA_VERSIONS = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}


def save_diffusers(
    file: Path, lora: LoraFile, layers: Layers, *, dtype: mx.Dtype = mx.float32
) -> None:
    """Write the file that diffusers' `load_lora_weights` and PEFT's names understand, atomically.

    Tensors are called as in PEFT ("unet.<path>.lora_A.weight"), and ranks and alphas stand in the
    metadata, as diffusers 0.42 writes them; earlier ones take alpha for the rank.

    Args:
        file: What to write; diffusers looks for pytorch_lora_weights.safetensors in a folder.
        lora: With plain low-rank updates only.
        layers: The model's, which give each tensor the number of axes of its weight.
        dtype: Of the tensors.

    Raises:
        AdapterError: an update is of a kind diffusers has no name for, or not finite in `dtype`.
    """
    arrays: dict[str, mx.array] = {}
    config: dict[str, Any] = {}
    for component, updates in lora.modules.items():
        for path, update in updates.items():
            name = _diffusers_name(component, path)
            down, up = _plain(update, layers[component][path], name)
            arrays[f"{name}.lora_A.weight"], arrays[f"{name}.lora_B.weight"] = down, up
        own = _lora_config(component, updates, layers[component])
        config |= {f"{component}.{key}": value for key, value in own.items()}
    text = json.dumps(config, indent=2, sort_keys=True)
    _write(file, arrays, dtype, {"format": "pt", METADATA_KEY: text})


def save_kohya(file: Path, lora: LoraFile, layers: Layers, *, dtype: mx.Dtype = mx.float32) -> None:
    """Write the file that A1111, ComfyUI and kohya's scripts understand, atomically.

    SDXL's U-Net is named as in Stability's implementation there, others as in diffusers.

    Args:
        file: What to write.
        lora: With updates of any kind.
        layers: All of the model's: they say which model it is.
        dtype: Of the tensors.

    Raises:
        AdapterError: an update is not finite in `dtype`.
    """
    unet = layers.get(UNET, {})
    xl = TEXT_ENCODER_2 in layers or "add_embedding.linear_1" in unet
    sgm = sgm_paths(unet) if xl else {}
    arrays: dict[str, mx.array] = {}
    for component, updates in lora.modules.items():
        for path, update in updates.items():
            layer = Layer(component, path)
            own = sgm.get(path) if component == UNET else None
            name = kohya_name(layer, sgm=own, several_text_encoders=xl)
            parts = _kohya_parts(update, layers[component][path])
            arrays |= {f"{name}.{part}": array for part, array in parts.items()}
    _write(file, arrays, dtype, _kohya_metadata(lora, layers))


def _diffusers_name(component: str, path: str) -> str:
    return f"{component}.{path if component == UNET else with_text_model(path)}"


def _plain(update: Update, shape: Shape, name: str) -> tuple[mx.array, mx.array]:
    """Return down and up with as many axes as the weight has."""
    factors = update.factors
    kind = type(factors).__name__
    if isinstance(factors, LowRank):
        kind = "Tucker" if factors.mid is not None else "bias" if update.bias is not None else ""
        kind = "DoRA" if update.magnitude is not None else kind
    if kind or not isinstance(factors, LowRank):
        raise AdapterError(
            f"{name}: a {kind} update has no place in a diffusers file", hint="write kohya's"
        )
    ones = (1,) * (len(shape) - 2)
    down = factors.down.reshape(factors.rank, *shape[1:])
    return down, factors.up.reshape(shape[0], factors.rank, *ones)


def _lora_config(
    component: str, updates: Mapping[str, Update], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """Return the keys of PEFT's LoraConfig that say which layers, ranks and alphas."""
    # A tail of the older path is one of both: only transformers before 5 have "text_model.".
    tails = {p.removeprefix(TEXT_MODEL): u for p, u in updates.items()}
    ranks = {p: int(u.factors.rank or 1) for p, u in tails.items()}
    alphas = {p: _alpha(u) for p, u in tails.items()}
    (rank, _), (alpha, _) = (Counter(v.values()).most_common(1)[0] for v in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {p: r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {p: a for p, a in alphas.items() if a != alpha},
        "target_modules": _tails(updates, shapes),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }


def _tails(updates: Mapping[str, Update], shapes: Mapping[str, Shape]) -> list[str]:
    """Return the ends of paths that name these layers and no others; else whole paths."""
    tails = set()
    for path in updates:
        parts = path.split(".")
        tails.add(".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:]))
    ends = tuple(f".{tail}" for tail in tails)
    if {p for p in shapes if f".{p}".endswith(ends)} == set(updates):
        return sorted(tails)
    return sorted(p.removeprefix(TEXT_MODEL) for p in updates)


def _alpha(update: Update) -> float:
    """Return scale * rank, without what division left of it: 1 / 3 * 3."""
    alpha = float(f"{update.scale * (update.factors.rank or 1):.7g}")
    return int(alpha) if alpha.is_integer() else alpha


def _kohya_parts(update: Update, shape: Shape) -> dict[str, mx.array]:
    factors, ones = update.factors, (1,) * (len(shape) - 2)
    if isinstance(factors, LowRank):
        kernel = shape[1:] if factors.mid is None else (shape[1], *ones)
        parts: dict[str, mx.array | None] = {
            "lora_down.weight": factors.down.reshape(factors.rank, *kernel),
            "lora_up.weight": factors.up.reshape(shape[0], factors.rank, *ones),
            "lora_mid.weight": factors.mid,
        }
    elif isinstance(factors, Hadamard):
        parts = {f"hada_{n}": getattr(factors, n) for n in type(factors).__dataclass_fields__}
    elif isinstance(factors, Kronecker):
        parts = {"lokr_t2": factors.t2} | _whole_or_pair("lokr_w1", factors.w1)
        parts |= _whole_or_pair("lokr_w2", factors.w2)
    else:
        parts = {"diff": factors.diff}
    if factors.rank is not None:
        parts["alpha"] = mx.array(float(_alpha(update)))
    elif update.scale != 1:  # without a rank alpha means nothing
        whole = "lokr_w1" if isinstance(factors, Kronecker) else "diff"
        parts |= {n: update.scale * a for n, a in parts.items() if n == whole and a is not None}
    if (magnitude := update.magnitude) is not None:
        column = (-1, 1, *ones) if magnitude.per == "output" else (1, -1, *ones)
        parts["dora_scale"] = magnitude.vector.reshape(column)
    parts["diff_b"] = update.bias
    return {name: array for name, array in parts.items() if array is not None}


def _whole_or_pair(
    name: str, value: mx.array | tuple[mx.array, mx.array]
) -> dict[str, mx.array | None]:
    if isinstance(value, tuple):
        return {f"{name}_a": value[0], f"{name}_b": value[1]}
    return {name: value}


def _kohya_metadata(lora: LoraFile, layers: Layers) -> dict[str, str]:
    updates = [u for own in lora.modules.values() for u in own.values()]
    plain = all(isinstance(u.factors, LowRank) and u.magnitude is None for u in updates)
    ranks = {u.factors.rank for u in updates} - {None}
    alphas = {_alpha(u) for u in updates}
    metadata = {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
    }
    if version := _KOHYA_VERSIONS.get(model_width(layers) or 0):
        metadata["ss_base_model_version"] = version
    return metadata


def _write(
    file: Path, arrays: Mapping[str, mx.array], dtype: mx.Dtype, metadata: dict[str, str]
) -> None:
    # Alphas are single numbers, and programs read them in any type: none is rounded.
    kept = {n: a if n.endswith(".alpha") else a.astype(dtype) for n, a in arrays.items()}
    if wrong := [n for n, a in kept.items() if not scalar(mx.isfinite(a).all())]:
        raise AdapterError(
            f"{wrong[0]} is not finite in {dtype} ({len(wrong)} such)",
            hint="write float32" if dtype != mx.float32 else "did the training go wrong?",
        )
    save_arrays(file, kept, metadata)
