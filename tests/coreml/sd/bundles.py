"""Tiny bundles of Stable Diffusion for tests, and LoRAs for them."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from macai.coreml.sd.export import SdExport, export_sd
from macai.coreml.sd.form import Form
from macai.coreml.sd.sources import ControlNet, Lora, Sources
from macai.diffusion.image_settings import UsedFile
from macai.diffusion.loading import Models, open_checkpoint, save_folder
from macai.diffusion.lora.formats import read_lora
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.models import from_config
from macai.diffusion.models.layout import to_torch
from macai.files import write_json
from macai.mil import open_package
from macai.models.arrays import named_arrays
from tests.diffusion.tiny import SCHEDULER, TEXT, UNET, VAE, letters_tokenizer

_SHARED = {
    "in_channels", "block_out_channels", "layers_per_block", "down_block_types",
    "cross_attention_dim", "attention_head_dim", "norm_num_groups",
}  # fmt: skip
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def xl_dir(folder: Path, *, ids: int = 6, **vae: object) -> Path:
    """Write a tiny SDXL, with 5 ids its refiner; its second encoder has another width."""
    second = TEXT | {
        "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 24, "hidden_act": "gelu",
        "projection_dim": 20,
    }  # fmt: skip
    texts = {"text_encoder": TEXT, "text_encoder_2": second}
    tokenizers = {
        "text_encoder": letters_tokenizer(),
        "text_encoder_2": letters_tokenizer(padding="!"),
    }
    if ids == 5:
        del texts["text_encoder"], tokenizers["text_encoder"]
    unet = UNET | {
        "cross_attention_dim": sum(text["hidden_size"] for text in texts.values()),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * ids + 20,
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
    }
    configs = {"unet": unet, "vae": VAE | {"scaling_factor": 0.13025} | vae, **texts}
    mx.random.seed(3)
    made = {name: from_config(config) for name, config in configs.items()}
    for module in made.values():
        module.eval()
        mx.eval(module.parameters())
    index = {"_class_name": "StableDiffusionXLPipeline"}
    models = Models(made, configs | {"pipeline": index}, SCHEDULER, tokenizers)
    save_folder(models, folder)
    return folder


def sources(model: Path, **parts) -> Sources:
    """Return a model with LoRAs and ControlNets."""
    return Sources(checkpoint=open_checkpoint(model), **parts)


def export_tiny(
    model: Path,
    folder: Path,
    *,
    loras=(),
    controlnets=(),
    adapters=None,
    sizes=(),
    most_bytes=None,
    bits=None,
    text_bits=None,
    timesteps=2,
    course=None,
    **form,
):
    """Export without a command line; return what export_sd returns."""
    folder.mkdir()
    wanted = SdExport(
        sources=sources(model, loras=loras, controlnets=controlnets, adapters=adapters or {}),
        name="tiny",
        form=Form(**form),
        sizes=sizes,
        most_bytes=most_bytes,
        bits=bits,
        text_bits=text_bits,
        timesteps=timesteps,
        course=course,
    )
    return export_sd(wanted, folder)


def controlnet(folder: Path, **own: object) -> ControlNet:
    """Write a ControlNet for the tiny model, one that finds something; return it opened."""
    config = {k: v for k, v in UNET.items() if k in _SHARED} | {
        "_class_name": "ControlNetModel",
        "conditioning_embedding_out_channels": [4, 8],
        **own,
    }
    mx.random.seed(4)
    model = from_config(config)
    model.eval()
    model.update(tree_map(lambda x: x + 0.05 * mx.random.normal(x.shape), model.parameters()))
    folder.mkdir()
    write_json(folder / "config.json", config)
    weights = to_torch(named_arrays(model.parameters()))
    mx.save_safetensors(str(folder / "diffusion_pytorch_model.safetensors"), weights)
    return ControlNet(name="Edges", checkpoint=open_checkpoint(folder))


def lora_file(path: Path) -> Path:
    """Write a LoRA of one layer of the tiny U-Net, strong enough to be seen."""
    rng = np.random.default_rng(5)
    arrays = {
        f"unet.{LAYER}.lora.down.weight": rng.normal(size=(2, 8)),
        f"unet.{LAYER}.lora.up.weight": rng.normal(size=(8, 2)),
    }
    mx.save_safetensors(str(path), {k: mx.array(v.astype(np.float32)) for k, v in arrays.items()})
    return path


def read(model: Path, path: Path, scale: float) -> Lora:
    """Read a LoRA for a model."""
    unet = from_config(open_checkpoint(model).configs["unet"])
    content = read_lora(path, layers_of({"unet": unet}))
    return Lora(content=content, scale=scale, file=UsedFile.of(path, scale=scale))


def run(folder: Path, name: str, precision="fp32", function="main", **inputs):
    """Run a package of a bundle; return its outputs by name."""
    package = open_package(folder / "Resources" / f"{name}.mlpackage")
    return package.functions[function].run(inputs, precision=precision).outputs
