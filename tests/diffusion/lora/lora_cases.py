"""Tiny pipelines, and LoRAs for them written in every spelling: the same numbers for every side."""

import json
import re
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.diffusion.lora.layers import adapted, layers_of
from macai.diffusion.lora.names import Layers, sgm_paths, target_paths
from macai.diffusion.models.clip_text import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)
from macai.models.arrays import save_arrays
from tests.diffusion.models.text_vae_cases import (
    TEXT_CONFIGS,
    psnr,
    token_ids,
    with_random_weights,
)
from tests.diffusion.models.unet_cases import (
    CROSS_DOWN,
    CROSS_UP,
    DOWN,
    KINDS,
    UP,
    inputs_of,
    model_of,
    outputs_of,
)

GOLDENS = Path(__file__).parents[2] / "goldens"
TENSORS = dict[str, mx.array]

# Two levels, of which one has attention: all kinds of layers there are, and few of each.
TWO_LEVELS = {"block_out_channels": [16, 32]}
SMALL_SD1 = TWO_LEVELS | {
    "down_block_types": [CROSS_DOWN, DOWN],
    "up_block_types": [UP, CROSS_UP],
    "layers_per_block": 2,
}
SMALL_XL = TWO_LEVELS | {
    "attention_head_dim": [2, 4],
    "down_block_types": [DOWN, CROSS_DOWN],
    "up_block_types": [CROSS_UP, UP],
    "transformer_layers_per_block": [1, 2],
}
UNETS = {
    "sd1": KINDS["sd1"] | SMALL_SD1,
    "sd2": KINDS["sd2"] | SMALL_SD1 | {"attention_head_dim": [2, 4], "cross_attention_dim": 24},
    "xl": KINDS["xl"] | SMALL_XL,
}
TEXTS = {
    "sd1": {"text_encoder": TEXT_CONFIGS["vit-l-new"]},
    "sd2": {"text_encoder": TEXT_CONFIGS["open-clip-h"]},
    "xl": {"text_encoder": TEXT_CONFIGS["vit-l-new"], "text_encoder_2": TEXT_CONFIGS["big-g"]},
}


def text_model_of(config: Mapping[str, Any]) -> nn.Module:
    """Return macai's text encoder of a config."""
    projected = config["architectures"] == ["CLIPTextModelWithProjection"]
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    return cls(CLIPTextConfig.from_dict(config))


def components_of(kind: str) -> dict[str, nn.Module]:
    """Return a tiny pipeline's models with random weights."""
    components = empty_components(kind)
    for name, weights in _random_weights(kind).items():
        components[name].update(weights)
    return components


def layers_of_kind(kind: str) -> Layers:
    """Return the layers of a tiny pipeline; no number is drawn for them."""
    return layers_of(empty_components(kind))


def empty_components(kind: str) -> dict[str, nn.Module]:
    """Return a tiny pipeline's models, whose weights nobody has computed."""
    texts = {name: text_model_of(config) for name, config in TEXTS[kind].items()}
    return {"unet": model_of(UNETS[kind])} | texts


@cache
def _random_weights(kind: str) -> dict[str, Any]:
    models = empty_components(kind).items()
    return {name: with_random_weights(model).parameters() for name, model in models}


def answers_of(components: Mapping[str, nn.Module], kind: str) -> dict[str, np.ndarray]:
    """Return what each model answers to inputs of its config."""
    answers = {}
    for name, model in components.items():
        if name == "unet":
            (answers[name],) = outputs_of(model, inputs_of(UNETS[kind]))
        else:
            ids = mx.array(prompts(kind, name))
            answers[name] = np.array(model(ids).last_hidden_state)
    return answers


def prompts(kind: str, component: str) -> np.ndarray:
    """Return two prompts, int32 [2, 77]."""
    return token_ids(TEXTS[kind][component], pad=1)[2:4]


def worst(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """Return the least PSNR of the same answers of two sides, in dB."""
    assert set(ours) == set(theirs)
    return min(psnr(ours[name], theirs[name]) for name in ours)


def drawn(name: str, *shape: int, spread: float = 0.3) -> np.ndarray:
    """Return float32 numbers that depend on `name` only."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (spread * rng.standard_normal(shape)).astype(np.float32)


def pairs_of(layers: Layers, *, rank: int = 3, targets: str = "linear") -> dict[str, TENSORS]:
    """Return a LoRA's {"component/path": {"down", "up"}} for the layers that `targets` names."""
    pairs = {}
    for component, shapes in layers.items():
        for path in target_paths(shapes, targets):
            out, into, *kernel = shapes[path]
            ones = (1,) * len(kernel)
            key = f"{component}/{path}"
            pairs[key] = {
                "down": mx.array(drawn(f"{key}.down", rank, into, *kernel)),
                "up": mx.array(drawn(f"{key}.up", out, rank, *ones)),
            }
    return pairs


def randomise(model: nn.Module, name: str) -> None:
    """Give every B beside the weights random numbers, as training would."""
    for path, layer in adapted(model).items():
        for branch in layer.branches:
            shape = branch.lora_B.shape
            branch.lora_B = mx.array(drawn(f"{name}/{path}/{branch.name}", *shape))


def parts(key: str) -> tuple[str, str]:
    """Return component and path of a key of `pairs_of`."""
    component, _, path = key.partition("/")
    return component, path


def spelled(pairs: Mapping[str, TENSORS], spelling: str, layers: Layers) -> TENSORS:
    """Return a LoRA's tensors as a program names them; written down here by the text of names."""
    tensors: TENSORS = {}
    sgm = sgm_paths(layers["unet"])
    for key, pair in pairs.items():
        component, path = parts(key)
        tensors |= SPELLINGS[spelling](component, path, pair, sgm)
    return tensors


def _kohya(component: str, path: str, pair: TENSORS, sgm: Mapping[str, str]) -> TENSORS:
    prefix = {"unet": "unet", "text_encoder": "te", "text_encoder_2": "te2"}[component]
    name = f"lora_{prefix}_{path.replace('.', '_')}"
    return {f"{name}.lora_down.weight": pair["down"], f"{name}.lora_up.weight": pair["up"]}


def _kohya_sgm(component: str, path: str, pair: TENSORS, sgm: Mapping[str, str]) -> TENSORS:
    prefix = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}[component]
    name = f"lora_{prefix}_{sgm.get(path, path).replace('.', '_')}"
    return {f"{name}.lora_down.weight": pair["down"], f"{name}.lora_up.weight": pair["up"]}


def _diffusers(component: str, path: str, pair: TENSORS, sgm: Mapping[str, str]) -> TENSORS:
    name = f"{component}.{path.removeprefix('text_model.')}"
    infix = "lora" if component == "unet" else "lora_linear_layer"
    return {f"{name}.{infix}.down.weight": pair["down"], f"{name}.{infix}.up.weight": pair["up"]}


def _diffusers_old(component: str, path: str, pair: TENSORS, sgm: Mapping[str, str]) -> TENSORS:
    parent, _, last = path.removesuffix(".0").rpartition(".")
    last = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}.get(
        last, last
    )
    if component == "unet":
        parent += ".processor"
    name = f"{component}.{parent}.{last}_lora"
    return {f"{name}.down.weight": pair["down"], f"{name}.up.weight": pair["up"]}


def _peft(component: str, path: str, pair: TENSORS, sgm: Mapping[str, str]) -> TENSORS:
    name = f"{component}.{path}"
    return {f"{name}.lora_A.weight": pair["down"], f"{name}.lora_B.weight": pair["up"]}


def _peft_model(component: str, path: str, pair: TENSORS, sgm: Mapping[str, str]) -> TENSORS:
    name = f"base_model.model.{component}.{path}"
    return {
        f"{name}.lora_A.default.weight": pair["down"],
        f"{name}.lora_B.default.weight": pair["up"],
    }


def _comfy(component: str, path: str, pair: TENSORS, sgm: Mapping[str, str]) -> TENSORS:
    name = f"diffusion_model.{sgm[path]}" if component == "unet" else f"{component}.{path}"
    return {f"{name}.lora_down.weight": pair["down"], f"{name}.lora_up.weight": pair["up"]}


SPELLINGS = {
    "kohya": _kohya,
    "kohya-sgm": _kohya_sgm,
    "diffusers": _diffusers,
    "diffusers-old": _diffusers_old,
    "peft": _peft,
    "peft-model": _peft_model,
    "comfy": _comfy,
}


def write(file: Path, tensors: Mapping[str, mx.array], **metadata: object) -> Path:
    """Write a LoRA file; metadata that is no text becomes JSON."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    save_arrays(file, dict(tensors), {"format": "pt"} | texts)
    return file


def lora_file(folder: Path, kind: str, spelling: str, **kwargs: Any) -> tuple[Path, dict[str, Any]]:
    """Write a LoRA for a tiny pipeline; return the file and its models."""
    components = components_of(kind)
    layers = layers_of(components)
    tensors = spelled(pairs_of(layers, **kwargs), spelling, layers)
    return write(folder / f"{kind}-{spelling}.safetensors", tensors), components


@cache
def full_size(kind: str) -> Layers:
    """Return the layers of a full-size model (ldm_names.npz), in the order of its parameters.

    Args:
        kind: "sd1", "sd2", "sdxl" or "sdxl-refiner".
    """
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        for path, shape, _ in _full_size(kind, component):
            layers.setdefault(component, {})[path] = shape
    return layers


@cache
def original_names(kind: str) -> dict[str, str]:
    """Return what the layers of a full-size U-Net are called in the original implementation."""
    prefix = "model.diffusion_model."
    return {p: source.removeprefix(prefix) for p, _, source in _full_size(kind, "unet")}


def _full_size(kind: str, component: str) -> list[tuple[str, tuple[int, ...], str]]:
    found = []
    with np.load(GOLDENS / "ldm_names.npz") as golden:
        if f"{kind}/{component}/parameters" not in golden:
            return []
        names, shapes = golden[f"{kind}/names"], golden[f"{kind}/shapes"]
        parameters, source, third, transposed = (
            golden[f"{kind}/{component}/{what}"]
            for what in ("parameters", "source", "third", "transposed")
        )
    for parameter, at, part, turned in zip(parameters, source, third, transposed, strict=True):
        name, shape = parameter.decode(), tuple(int(n) for n in shapes[at] if n >= 0)
        if not name.endswith(".weight") or len(shape) < 2 or "_embedding.weight" in name:
            continue
        shape = shape[::-1] if turned else shape
        shape = (shape[0] // 3, *shape[1:]) if part >= 0 else shape
        found.append(
            (name.removesuffix(".weight"), shape, names[at].decode().removesuffix(".weight"))
        )
    return found


def pair_file(layers, tmp_path, spelling, name="lora.safetensors", alpha=None, **metadata):
    """Write a LoRA of rank 3 for a U-Net's and a text encoder's layers; return it and its pairs."""
    paths = {
        "unet": ["mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "conv_in"],
        "text_encoder": ["text_model.encoder.layers.0.mlp.fc1"],
    }
    some = {c: {p: layers[c][p] for p in own} for c, own in paths.items()}
    pairs = {}
    for component, shapes in some.items():
        for path, (out, into, *kernel) in shapes.items():
            ones = (1,) * len(kernel)
            down, up = mx.array(drawn(path, 3, into, *kernel)), mx.array(drawn(path, out, 3, *ones))
            pairs[f"{component}/{path}"] = {"down": down, "up": up}
    tensors = spelled(pairs, spelling, layers)
    if alpha is not None:
        for key in list(tensors):
            name_of_layer = re.sub(r"\.(lora_(up|down)|lora\.(up|down)|lora_[AB]).*", "", key)
            tensors[f"{name_of_layer}.alpha"] = mx.array(alpha)
    return write(tmp_path / name, tensors, **metadata), pairs
