"""Write LoRA files as diffusers does, what its tiny pipelines answer with them, and PEFT's deltas.

    python -m tests.oracles.make_diffusion_lora

diffusion_lora_{sd1,xl}.safetensors are what `save_lora_weights` wrote: ranks and alphas of their
own for some layers. Base weights and inputs are drawn by name (tests/diffusion/lora/lora_cases.py).
diffusion_lora.npz holds, for each of both, KIND/COMPONENT: the answer; and for a CASE of LoHa, LoKr
and DoRA on one layer of PEFT, delta/CASE/weight, .../delta, .../scale, and each tensor as
.../PART, under LyCORIS's or PEFT's name. The oracles are diffusers and PEFT with torch on the CPU,
in float32; their versions are in the golden.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.diffusion.lora.lora_cases import GOLDENS, drawn
from tests.diffusion.lora.lora_oracle import (
    TEXT_TARGETS,
    UNET_TARGETS,
    add_adapters,
    pipeline,
    save,
    torch_answers,
)

DELTAS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "loha-linear": ("linear", "LoHa", {"r": 3, "alpha": 2}),
    "loha-conv": ("conv", "LoHa", {"r": 3, "alpha": 2}),
    "loha-tucker": ("conv", "LoHa", {"r": 3, "alpha": 2, "use_effective_conv2d": True}),
    "lokr-linear": ("linear", "LoKr", {"r": 1, "alpha": 3}),
    "lokr-whole": ("linear", "LoKr", {"r": 8, "alpha": 8}),
    "lokr-conv": ("conv", "LoKr", {"r": 1, "alpha": 3, "decompose_factor": 2}),
    "lokr-tucker": (
        "conv",
        "LoKr",
        {"r": 1, "alpha": 3, "use_effective_conv2d": True, "decompose_both": True},
    ),
    "dora-linear": ("linear", "Lora", {"r": 2, "lora_alpha": 3, "use_dora": True}),
    "dora-conv": ("conv", "Lora", {"r": 2, "lora_alpha": 3, "use_dora": True}),
}


def pipelines(arrays: dict[str, np.ndarray]) -> None:
    """Write the files; add the answers."""
    from peft import LoraConfig

    text = {"r": 3, "lora_alpha": 2, "target_modules": TEXT_TARGETS}
    patterns = {"rank_pattern": {"to_q": 3, "conv1": 1}, "alpha_pattern": {"to_v": 1, "conv1": 3}}
    for kind in ("sd1", "xl"):
        pipe = pipeline(kind)
        unet = {"r": 2, "lora_alpha": 3, "target_modules": UNET_TARGETS}
        configs = {"unet": LoraConfig(**unet, **patterns), "text_encoder": LoraConfig(**text)}
        if kind == "xl":
            configs["text_encoder_2"] = LoraConfig(**text | {"r": 1})
        add_adapters(pipe, configs)
        with tempfile.TemporaryDirectory() as folder:
            file = save(pipe, Path(folder))
            shutil.copyfile(file, GOLDENS / f"diffusion_lora_{kind}.safetensors")
        arrays |= {f"{kind}/{name}": a for name, a in torch_answers(pipe, kind).items()}


def deltas(arrays: dict[str, np.ndarray]) -> None:
    """Add one layer's weight, tensors and delta for each case."""
    import peft
    import torch

    for case, (layer, kind, more) in DELTAS.items():
        base = {"linear": torch.nn.Linear(12, 20), "conv": torch.nn.Conv2d(12, 20, (2, 3))}
        model = torch.nn.ModuleDict({"layer": base[layer]})
        weight = drawn(f"{case}/weight", *base[layer].weight.shape)
        base[layer].weight.data = torch.from_numpy(weight.copy())
        config = getattr(peft, f"{kind}Config")(target_modules=["layer"], **more)
        tuned = peft.get_peft_model(model, config)
        for key, value in tuned.named_parameters():
            if value.requires_grad:
                numbers = torch.from_numpy(drawn(f"{case}/{key}", *value.shape))
                # A magnitude starts as the norm of its weight, and stays near it.
                value.data = value.data * (1 + 0.3 * numbers) if "magnitude" in key else numbers
        tensors = peft.get_peft_model_state_dict(tuned)
        for key, value in tensors.items():
            arrays[f"delta/{case}/{key.removeprefix('base_model.model.layer.')}"] = value.numpy()
        arrays[f"delta/{case}/scale"] = np.array(
            more.get("alpha", more.get("lora_alpha")) / more["r"]
        )
        arrays[f"delta/{case}/weight"] = weight
        merged = tuned.merge_and_unload()["layer"].weight.detach().numpy()
        arrays[f"delta/{case}/delta"] = merged - weight


def main() -> None:
    """Write the goldens."""
    import diffusers
    import peft
    import torch

    torch.set_num_threads(1)
    versions = [f"{m.__name__} {m.__version__}" for m in (torch, diffusers, peft)]
    arrays = {"versions": np.array(versions)}
    pipelines(arrays)
    deltas(arrays)
    np.savez_compressed(GOLDENS / "diffusion_lora.npz", **arrays)
    for file in sorted(GOLDENS.glob("diffusion_lora*")):
        print(f"{file.name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
