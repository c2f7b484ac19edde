"""The same tiny pipelines and LoRAs in diffusers and PEFT; torch is imported when one is made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.diffusion.lora.lora_cases import TEXTS, UNETS, drawn, prompts
from tests.diffusion.models.text_vae_cases import random_weights
from tests.diffusion.models.text_vae_oracle import text_encoder
from tests.diffusion.models.unet_cases import inputs_of, torch_model, torch_outputs

# Targets of LoRAs that people train: attention, feed-forward, convolutions and what is outside.
UNET_TARGETS = [
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv"),
    *("upsamplers.0.conv", "conv_in", "conv_out", "time_embedding.linear_1"),
]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def without_version_check() -> None:
    """Let transformers use the newest PEFT there is: it asks for one that is not released."""
    import transformers.integrations.peft as integration

    integration.check_peft_version = lambda min_version: None


def pipeline(kind: str) -> Any:
    """Return diffusers' pipeline of U-Net and text encoders with random weights."""
    import diffusers
    import torch

    torch.set_num_threads(1)
    without_version_check()
    models = {"unet": unet_of(kind)}
    models |= {name: text_encoder(text)[0] for name, text in TEXTS[kind].items()}
    nothing = dict.fromkeys(("vae", "tokenizer", "feature_extractor"))
    scheduler = diffusers.EulerDiscreteScheduler()
    if kind == "xl":
        return diffusers.StableDiffusionXLPipeline(
            **models, **nothing, tokenizer_2=None, scheduler=scheduler
        )
    return diffusers.StableDiffusionPipeline(
        **models,
        **nothing,
        safety_checker=None,
        requires_safety_checker=False,
        scheduler=scheduler,
    )


def unet_of(kind: str) -> Any:
    """Return diffusers' U-Net with random weights."""
    shapes = {n: tuple(t.shape) for n, t in torch_model(UNETS[kind]).state_dict().items()}
    return torch_model(UNETS[kind], random_weights(shapes))


def unet_answers(model: Any, kind: str) -> dict[str, np.ndarray]:
    """Return what a U-Net answers to the inputs of `lora_cases.answers_of`."""
    (answer,) = torch_outputs(model, inputs_of(UNETS[kind]))
    return {"unet": answer}


def models_of(pipe: Any) -> dict[str, Any]:
    """Return the models of a pipeline that LoRAs are for."""
    names = ("unet", "text_encoder", "text_encoder_2")
    return {n: pipe.components[n] for n in names if pipe.components.get(n) is not None}


def torch_answers(pipe: Any, kind: str) -> dict[str, np.ndarray]:
    """Return what each model answers to the inputs of `lora_cases.answers_of`."""
    import torch

    answers = {}
    for name, model in models_of(pipe).items():
        if name == "unet":
            answers |= unet_answers(model, kind)
        else:
            ids = torch.from_numpy(prompts(kind, name)).long()
            with torch.no_grad():
                answers[name] = model(ids).last_hidden_state.numpy()
    return answers


def add_adapters(pipe: Any, configs: Mapping[str, Any], name: str = "default") -> None:
    """Put adapters of PEFT's `configs` into a pipeline's models, all their numbers random."""
    import torch

    for component, config in configs.items():
        model = models_of(pipe)[component]
        model.add_adapter(config, adapter_name=name)
        model.set_adapter(name)
        for key, value in model.named_parameters():
            if not value.requires_grad or f".{name}" not in key:
                continue
            spread = 0.05 if "magnitude" in key else 0.15
            numbers = torch.from_numpy(drawn(f"{component}/{key}", *value.shape, spread=spread))
            # A magnitude starts as the norm of its weight, and stays near it.
            value.data = value.data * (1 + numbers) if "magnitude" in key else numbers
        model.eval()


def save(pipe: Any, folder: Path, name: str = "default") -> Path:
    """Write the adapters called `name` as diffusers' training scripts do; return the file."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    models = {n: m for n, m in models_of(pipe).items() if hasattr(m, "peft_config")}
    layers, metadata = {}, {}
    for component, model in models.items():
        state = get_peft_model_state_dict(model, adapter_name=name)
        layers[f"{component}_lora_layers"] = convert_state_dict_to_diffusers(state)
        config = model.peft_config[name].to_dict()
        metadata[f"{component}_lora_adapter_metadata"] = config
    type(pipe).save_lora_weights(folder, **layers, **metadata)
    return folder / "pytorch_lora_weights.safetensors"


def load(pipe: Any, file: Path, name: str = "default") -> None:
    """Put a LoRA file into a pipeline as diffusers does."""
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
