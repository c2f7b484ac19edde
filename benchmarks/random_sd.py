"""Write Stable Diffusion with random weights: there are no others here, and they cost the same.

    python -m benchmarks.random_sd KIND FOLDER

Sizes are those of the published models, weights are float16. KIND is one of

    sd1, sd1-inpaint    Stable Diffusion 1.5, and with 9 channels
    sd1-controlnet      a ControlNet for it
    sd1-tiny            a tenth of the channels of U-Net and autoencoder, to try a benchmark itself
    sd1-unet            only the U-Net in earnest; autoencoder and text encoder are small
    sd1-unet-small      the same with a fifth of its channels, at 128x128 pixels
    sd2                 Stable Diffusion 2.1 at 768x768, which predicts v
    sd-turbo            SD Turbo: the same at 512x512, which predicts noise, in few steps
    sdxl                SDXL at full width: one transformer block in each of its stacks of up to
                        ten, a second text encoder of two layers in the place of 32
    sdxl-deep           SDXL as it is: 7 GB of weights, and a machine of 24 GB to export them
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX

# isort: split
import mlx.core as mx
from mlx.utils import tree_map

from macai.bench.process import measure
from macai.diffusion.loading import Models, save_folder
from macai.diffusion.loading import known_configs as known
from macai.diffusion.models import from_config
from macai.diffusion.tokenizer import ClipTokenizer

Configs = dict[str, dict[str, Any]]
_NARROW = {"block_out_channels": [32, 32, 64, 64]}
_VERSIONS = {"sd2": "sd2", "sd-turbo": "sd2", "sdxl": "sdxl", "sdxl-deep": "sdxl"}
KINDS: Mapping[str, Configs] = {
    "sd1": {},
    "sd1-inpaint": {"unet": {"in_channels": 9}},
    "sd1-tiny": {"unet": _NARROW, "vae": _NARROW},
    "sd1-unet": {
        "vae": {"block_out_channels": [32] * 4},
        "text_encoder": {"num_hidden_layers": 1},
    },
    "sd1-unet-small": {
        "unet": {"block_out_channels": [64, 128, 256, 256], "sample_size": 16},
        "vae": {"block_out_channels": [32] * 4},
        "text_encoder": {"num_hidden_layers": 1},
    },
    "sd2": {},
    "sd-turbo": {
        "unet": {"sample_size": 64},
        "scheduler": {"prediction_type": "epsilon", "timestep_spacing": "trailing"},
    },
    "sdxl": {
        "unet": {"transformer_layers_per_block": 1},
        "text_encoder_2": {"num_hidden_layers": 2},
    },
    "sdxl-deep": {},
}
"""What each kind changes of the configs of its version, by component."""
CONTROLNET = "sd1-controlnet"
_GAIN = 0.6
"""Random layers of the usual size grow what goes through them beyond what trained ones do."""


def random_model(kind: str, folder: Path) -> None:
    """Have one written by a process of its own, which takes its memory along."""
    measure([sys.executable, "-m", "benchmarks.random_sd", kind, str(folder)])


def write(kind: str, folder: Path) -> None:
    """Write a model of one of KINDS, or a ControlNet's file, with float16 weights."""
    mx.random.seed(0)
    if kind == CONTROLNET:
        config = known.controlnet("sd1")
        return save_folder(_models({"controlnet": config}), folder)
    version = _VERSIONS.get(kind, "sd1")
    configs = {
        "unet": known.UNETS[version],
        "vae": known.vae(version),
        **known.TEXT_ENCODERS[version],
    }
    changes = KINDS[kind]
    configs = {name: config | changes.get(name, {}) for name, config in configs.items()}
    scheduler = known.SCHEDULERS[version] | changes.get("scheduler", {})
    return save_folder(_models(configs, version, scheduler), folder)


def _models(
    configs: Configs, version: str = "sd1", scheduler: dict[str, Any] | None = None
) -> Models:
    models = {name: from_config(config) for name, config in configs.items()}
    for model in models.values():
        model.update(tree_map(lambda x: (_GAIN * x).astype(mx.float16), model.parameters()))
    texts = zip(
        (name for name in configs if name.startswith("text_encoder")),
        known.TOKENIZERS[version].values(),
        strict=False,
    )
    return Models(
        models=models,
        configs=configs | {"pipeline": known.PIPELINES[version]},
        scheduler_config=scheduler or {},
        tokenizers={
            name: ClipTokenizer.shipped(padding=config["pad_token"]) for name, config in texts
        },
    )


def main() -> None:
    """Write one."""
    options = argparse.ArgumentParser()
    options.add_argument("kind", choices=[*KINDS, CONTROLNET])
    options.add_argument("folder", type=Path)
    chosen = options.parse_args()
    write(chosen.kind, chosen.folder)


if __name__ == "__main__":
    main()
