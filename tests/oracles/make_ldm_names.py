"""Write what the tensors of single-file checkpoints are called, and what diffusers calls them.

Names and shapes come from the classes that wrote such files, built on the meta device; what each
becomes comes from diffusers' own converters, run on tensors of a few numbers each. Nothing of the
sources is copied. Oracles: diffusers and torch as installed, and copies of

    lllyasviel/ControlNet ed85cd1    (cldm, and the ldm of SD1 and its autoencoder)
    Stability-AI/generative-models 0ad7de9    (sgm: the U-Nets of SD2, XL and its refiner)
    open-clip-torch 3.3.0    (text encoders of SD2 and XL)

    pip install einops fsspec
    python tests/oracles/make_ldm_names.py CONTROLNET SGM OPEN_CLIP    # folders that hold them

ldm_names.npz, for each KIND: KIND/names and KIND/shapes (int32, -1 where there is no dimension) of
a whole file; for each component KIND/COMPONENT/parameters, .../source (its index in the names),
.../third (which third of the source's rows, or -1) and .../transposed.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import diffusers.loaders.single_file_utils as oracle
import numpy as np
import torch

GOLDENS = Path(__file__).parents[1] / "goldens"

SD1 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4],
    "num_heads": 8, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 768,
    "legacy": False,
}  # fmt: skip
SD2 = {
    "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "num_head_channels": 64,
    "use_linear_in_transformer": True, "transformer_depth": 1, "context_dim": 1024,
}  # fmt: skip
XL = SD2 | {
    "adm_in_channels": 2816, "num_classes": "sequential", "attention_resolutions": [4, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [1, 2, 10], "context_dim": 2048,
}  # fmt: skip
REFINER = XL | {
    "adm_in_channels": 2560, "model_channels": 384, "channel_mult": [1, 2, 4, 4],
    "transformer_depth": 4, "context_dim": [1280] * 4,
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
SCHEDULE = [
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2",
]  # fmt: skip
"""The buffers that ldm.models.diffusion.ddpm.DDPM registers."""

Shapes = dict[str, tuple[int, ...]]
Spelt = dict[str, torch.Tensor]


def package(name: str, folder: Path | None = None, **attributes: Any) -> None:
    """Make a package without running its __init__, which would import far more than is needed."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)] if folder else []  # type: ignore[attr-defined]
    module.__dict__.update(attributes)
    sys.modules[name] = module


def shapes_of(module: Any, prefix: str) -> Shapes:
    state = module if isinstance(module, dict) else module.state_dict()
    return {prefix + name: tuple(value.shape) for name, value in state.items()}


def autoencoder() -> Shapes:
    from ldm.modules.diffusionmodules.model import Decoder, Encoder

    prefix = "first_stage_model."
    return (
        shapes_of(Encoder(**VAE), f"{prefix}encoder.")
        | shapes_of(Decoder(**VAE), f"{prefix}decoder.")
        | shapes_of(torch.nn.Conv2d(8, 8, 1), f"{prefix}quant_conv.")
        | shapes_of(torch.nn.Conv2d(4, 4, 1), f"{prefix}post_quant_conv.")
    )


def clip(prefix: str) -> Shapes:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    # Files have the names of transformers before its version 5.
    names = shapes_of(CLIPTextModel(config), f"{prefix}text_model.")
    return names | {f"{prefix}text_model.embeddings.position_ids": (1, 77)}


def open_clip(prefix: str, *, width: int, heads: int, layers: int) -> Shapes:
    from open_clip.transformer import TextTransformer

    model = TextTransformer(width=width, heads=heads, layers=layers, output_dim=width)
    return shapes_of(model, prefix) | {f"{prefix}logit_scale": ()}


def unet(module: str, params: dict[str, Any]) -> Shapes:
    source = importlib.import_module(f"{module}.modules.diffusionmodules.openaimodel")
    return shapes_of(source.UNetModel(**params), "model.diffusion_model.")


def files() -> dict[str, Shapes]:
    from cldm.cldm import ControlNet

    schedule: Shapes = dict.fromkeys(SCHEDULE, (1000,))
    vae = autoencoder()
    sd1 = unet("ldm", SD1)
    big = {"width": 1280, "heads": 20, "layers": 32}
    control = {k: v for k, v in SD1.items() if k != "out_channels"} | {"hint_channels": 3}
    # LitEma's names: those of the parameters inside `model`, without dots.
    ema = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): shape
        for name, shape in sd1.items()
    }
    return {
        "sd1": sd1 | ema | vae | clip("cond_stage_model.transformer.") | schedule,
        "sd1-inpaint": unet("ldm", SD1 | {"in_channels": 9}),
        "sd2": unet("sgm", SD2)
        | vae
        | open_clip("cond_stage_model.model.", width=1024, heads=16, layers=24)
        | schedule,
        "sdxl": unet("sgm", XL)
        | vae
        | clip("conditioner.embedders.0.transformer.")
        | open_clip("conditioner.embedders.1.model.", **big)
        | {"denoiser.sigmas": (1000,)},
        "sdxl-refiner": unet("sgm", REFINER)
        | vae
        | open_clip("conditioner.embedders.0.model.", **big)
        | {"denoiser.sigmas": (1000,)},
        "controlnet": shapes_of(ControlNet(**control), "control_model."),
    }


def tiny(names: list[str], shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return a tensor of very few numbers for each name: its index, and where each number is."""
    result = {}
    for index, name in enumerate(names):
        size = [1] * len(shapes[name])
        if ".in_proj_" in name or name.endswith("text_projection"):
            size = [2] * len(size)
            size[0] *= 3 if ".in_proj_" in name else 1
        count = int(np.prod(size))
        result[name] = (index * 100 + torch.arange(count)).reshape(size)
    return result


def converted(kind: str, spelt: Spelt) -> dict[str, Spelt]:
    """Run diffusers' converters."""
    if kind == "controlnet":
        return {"controlnet": oracle.convert_controlnet_checkpoint(spelt, {"layers_per_block": 2})}
    config = {"layers_per_block": 2}
    if "xl" in kind:
        config |= {"addition_embed_type": "text_time"}
    found = {"unet": oracle.convert_ldm_unet_checkpoint(spelt, config)}
    if kind == "sd1-inpaint":
        return found
    types4 = {"down_block_types": [""] * 4, "up_block_types": [""] * 4}
    found["vae"] = oracle.convert_ldm_vae_checkpoint(spelt, types4)
    if kind in ("sd1", "sdxl"):
        found["text_encoder"] = oracle.convert_ldm_clip_checkpoint(spelt)
    prefixes = {
        "sd2": ("text_encoder", "cond_stage_model.model."),
        "sdxl": ("text_encoder_2", "conditioner.embedders.1.model."),
        "sdxl-refiner": ("text_encoder_2", "conditioner.embedders.0.model."),
    }
    if kind in prefixes:
        component, prefix = prefixes[kind]
        model = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=2))
        found[component] = oracle.convert_open_clip_checkpoint(model, spelt, prefix=prefix)
    return found


def assignments(names: list[str], made: Spelt) -> dict[str, np.ndarray]:
    made = {n: v for n, v in made.items() if not n.endswith("position_ids")}
    first = np.array([int(value.reshape(-1)[0]) for value in made.values()])
    source = first // 100
    thirds, transposed = [], []
    for value, index, begin in zip(made.values(), source, first, strict=True):
        fused = ".in_proj_" in names[index]
        thirds.append(int(begin) % 100 // (4 if value.ndim == 2 else 2) if fused else -1)
        transposed.append(value.shape == (2, 2) and int(value[0, 1] - value[0, 0]) == 2)
    return {
        "parameters": np.array([n.encode() for n in made]),
        "source": source.astype(np.int32),
        "third": np.array(thirds, np.int8),
        "transposed": np.array(transposed),
    }


def main(controlnet: Path, sgm: Path, open_clip_folder: Path) -> None:
    package("ldm", controlnet / "ldm")
    package("sgm", sgm / "sgm")
    package("sgm.modules", sgm / "sgm/modules")
    package("sgm.modules.diffusionmodules", sgm / "sgm/modules/diffusionmodules")
    package("cldm", controlnet / "cldm")
    package("open_clip", open_clip_folder / "open_clip")
    # What is imported for training and for configs.
    package("omegaconf")
    package("omegaconf.listconfig", ListConfig=list)
    package("torchvision")
    package("torchvision.utils", make_grid=None)
    package("torchvision.ops")
    package("torchvision.ops.misc", FrozenBatchNorm2d=object)
    package("ldm.models")
    package("ldm.models.diffusion")
    package("ldm.models.diffusion.ddpm", LatentDiffusion=object)
    package("ldm.models.diffusion.ddim", DDIMSampler=object)
    sys.modules["ldm.util"] = sys.modules.get("ldm.util") or types.ModuleType("ldm.util")
    sys.modules["ldm.util"].__dict__.update(
        exists=lambda value: value is not None,
        instantiate_from_config=None,
        log_txt_as_img=None,
    )
    arrays: dict[str, np.ndarray] = {}
    with torch.device("meta"):
        found = files()
    for kind, shapes in found.items():
        names = list(shapes)
        arrays[f"{kind}/names"] = np.array([n.encode() for n in names])
        padded = [list(shape) + [-1] * (4 - len(shape)) for shape in shapes.values()]
        arrays[f"{kind}/shapes"] = np.array(padded, np.int32)
        for component, made in converted(kind, tiny(names, shapes)).items():
            for what, array in assignments(names, made).items():
                arrays[f"{kind}/{component}/{what}"] = array
            print(kind, component, len(made), "parameters of", len(names), "names")
    np.savez_compressed(GOLDENS / "ldm_names.npz", **arrays)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
