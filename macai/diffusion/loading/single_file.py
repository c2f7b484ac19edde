"""Open one file of weights: a whole model in the original layout, or a ControlNet or VAE alone.

What it is is told from names and shapes of its tensors alone. Two things cannot be: whether an SD2
model is the base or the 768 one that predicts v (unless the file says so), and how much the
autoencoder of a file without a U-Net scales its latents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macai.diffusion.loading import known_configs
from macai.diffusion.loading.contents import CUSTOM, Contents, Part, kind_of
from macai.diffusion.loading.coverage import left_over
from macai.diffusion.loading.folder import CONFIG, component_of, read_json
from macai.diffusion.loading.sources import (
    EMA,
    MakeTable,
    clip_table,
    ldm_denoiser_table,
    ldm_vae_table,
    open_clip_table,
)
from macai.diffusion.loading.weights import WeightsFile, open_weights
from macai.errors import ModelError, UsageError
from macai.models.shown import shown
from macai.models.stored import StoredTensor

UNET, CONTROL = "model.diffusion_model.", "control_model."
VAES = ("first_stage_model.", "vae.")
_CLIP = "transformer."
_OPEN_CLIP = "model."
# Of each version, where its text encoders are.
_CONDITIONERS = {
    "sd1": {"text_encoder": "cond_stage_model."},
    "sd2": {"text_encoder": "cond_stage_model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.",
        "text_encoder_2": "conditioner.embedders.1.",
    },
    "sdxl-refiner": {"text_encoder_2": "conditioner.embedders.0."},
}
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""The width of the text that a version's U-Net attends to."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SD2_BASE_STEPS = 875000  # what the published SD2 base was trained for
BASE_SAMPLE_SIZE = 64

_EDM = ("edm_mean", "edm_std", "edm_vpred")

# Names that say what a file is instead.
_OTHERS = {
    "lora_": "a LoRA, not a model: give it as --lora",
    ".lora_A.": "a LoRA, not a model: give it as --lora",
    "joint_blocks.": "Stable Diffusion 3, which is not supported",
    "double_blocks.": "Flux, which is not supported",
    "motion_modules.": "a motion module, which is not supported",
    "string_to_param": "a textual inversion, not a model",
    "emb_params": "a textual inversion, not a model",
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a file does not say, or says otherwise.

    Attributes:
        kind: The version of a VAE alone: its latents' scale.
        prediction_type: One of PREDICTIONS.
        ema: Take the averaged weights of the U-Net.
    """

    kind: str | None = None
    prediction_type: str | None = None
    ema: bool = False

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in known_configs.KINDS:
            known = ", ".join(known_configs.KINDS)
            raise UsageError(f"{self.kind!r} is no version", hint=f"known: {known}")
        if self.prediction_type not in (None, *PREDICTIONS):
            raise UsageError(
                f"{self.prediction_type!r} is nothing a model predicts",
                hint=f"known: {', '.join(PREDICTIONS)}",
            )


@dataclass(frozen=True, slots=True)
class _File:
    """An opened file."""

    path: Path
    weights: WeightsFile
    wishes: Wishes = field(default_factory=Wishes)

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return self.weights.tensors

    def under(self, *prefixes: str) -> dict[str, StoredTensor]:
        return {n: t for n, t in self.tensors.items() if n.startswith(prefixes)}

    def part(
        self,
        config: Mapping[str, Any],
        table: MakeTable,
        *prefixes: str,
        may_be_left: Callable[[str], str | None] = left_over,
    ) -> Part:
        return Part(config, self.under(*prefixes), self.path, table, may_be_left)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that has to be there and to have at least two dimensions."""
        tensor = self.tensors.get(name)
        if tensor is None or len(tensor.shape) < 2:
            raise _unknown(self.path, f"{name} is missing")
        return tensor.shape


def read_single_file(path: Path, wishes: Wishes) -> Contents:
    """Read the header of one file and tell what is in it.

    Raises:
        ModelError: it is none of the models known here; what it seems to be is said.
        FormatError: it is damaged.
    """
    file = _File(path, open_weights(path), wishes)
    if file.under(UNET):
        return _whole(file)
    if wishes.ema:
        raise UsageError(f"{path}: not a whole model, so without averaged weights")
    for test, read in _ALONE:
        if test(file):
            return read(file)
    named = (what for part, what in _OTHERS.items() if any(part in n for n in file.tensors))
    raise _unknown(
        path, next(named, f"its first tensor is called {shown(min(file.tensors, default=''))}")
    )


def _whole(file: _File) -> Contents:
    if edm := [name for name in file.tensors if name.startswith(_EDM)]:
        raise _unknown(
            file.path, f"it needs a schedule of its own ({shown(edm[0])}), as Playground 2.5"
        )
    unet, kind = _unet(file)
    parts = {"unet": unet}
    prefix = next((p for p in VAES if file.under(p)), None)
    if prefix is not None:
        parts["vae"] = file.part(known_configs.vae(kind), ldm_vae_table(prefix), prefix)
    parts |= _text_encoders(file, kind)
    owned = set().union(*(part.tensors for part in parts.values()))
    ignored: dict[str, int] = {}
    for name in file.tensors.keys() - owned:
        reason = left_over(name) or f"{shown(name.split('.')[0], 40)}.*"
        ignored[reason] = ignored.get(reason, 0) + 1
    return Contents(
        kind,
        parts,
        scheduler_config=_scheduler(file, kind),
        pipeline_config=known_configs.PIPELINES[kind],
        tokenizers=dict.fromkeys(known_configs.TOKENIZERS[kind]),
        ignored=ignored,
    )


def _unet(file: _File) -> tuple[Part, str]:
    kind = _kind(file, UNET, "input_blocks.")
    channels = file.shape(f"{UNET}input_blocks.0.0.weight")[1]
    if channels not in (4, 8, 9):
        raise _unknown(file.path, f"its U-Net takes {channels} channels")
    config = known_configs.UNETS[kind] | {"in_channels": channels}
    if kind == "sd2" and _prediction(file, kind) == "epsilon":
        config |= {"sample_size": BASE_SAMPLE_SIZE}
    guidance = file.tensors.get(f"{UNET}time_embed.cond_proj.weight")
    if guidance is not None:
        config |= {"time_cond_proj_dim": file.shape(guidance.name)[1]}
    if not file.wishes.ema:
        return file.part(config, ldm_denoiser_table(UNET), UNET), kind
    if len(file.under(EMA)) < 100:
        raise ModelError(
            f"{file.path}: no averaged weights in it", hint="most files come without: leave it out"
        )
    # Beside the weights: how they are averaged.
    beside = {f"{EMA}decay", f"{EMA}num_updates"}
    return (
        file.part(
            config,
            ldm_denoiser_table(UNET, ema=True),
            f"{EMA}diffusion_model",
            *beside,
            may_be_left=lambda name: "averaging" if name in beside else None,
        ),
        kind,
    )


def _kind(file: _File, prefix: str, blocks: str) -> str:
    """Return the version by the width of the text that the U-Net or ControlNet attends to."""
    names = file.under(prefix + blocks)
    keys = sorted(n for n in names if n.endswith(".attn2.to_k.weight"))
    if not keys:
        raise _unknown(file.path, "its U-Net does not attend to a text")
    width = file.shape(keys[0])[1]
    if width not in _WIDTHS:
        raise _unknown(file.path, f"its U-Net attends to a text of width {width}")
    return _WIDTHS[width]


def _text_encoders(file: _File, kind: str) -> dict[str, Part]:
    parts = {}
    for component, prefix in _CONDITIONERS[kind].items():
        config = known_configs.TEXT_ENCODERS[kind][component]
        if file.under(prefix + _CLIP):
            parts[component] = file.part(config, clip_table(prefix + _CLIP), prefix)
        elif file.under(prefix + _OPEN_CLIP):
            parts[component] = file.part(
                config,
                open_clip_table(prefix + _OPEN_CLIP),
                prefix,
                may_be_left=_after_last_layer(config, prefix + _OPEN_CLIP),
            )
    return parts


def _after_last_layer(config: Mapping[str, Any], prefix: str) -> Callable[[str], str | None]:
    """Return what allows the layers of OpenCLIP's encoder that a model does not use."""
    unused = f"{prefix}transformer.resblocks.{config['num_hidden_layers']}."
    projection = f"{prefix}text_projection"
    projects = config["architectures"] == ["CLIPTextModelWithProjection"]

    def may_be_left(name: str) -> str | None:
        if name.startswith(unused) or (name == projection and not projects):
            return "after the layer that counts"
        return left_over(name)

    return may_be_left


def _prediction(file: _File, kind: str) -> str:
    """Return what the U-Net predicts: as wished, as the file says, or as most of its version do."""
    if file.wishes.prediction_type is not None:
        return file.wishes.prediction_type
    if "v_pred" in file.tensors:
        return "v_prediction"
    # Stability's ModelSpec.
    said = file.weights.metadata.get("modelspec.prediction_type")
    if said in ("v", "epsilon"):
        return "v_prediction" if said == "v" else said
    architecture = file.weights.metadata.get("modelspec.architecture")
    if architecture in ("stable-diffusion-v2-512", "stable-diffusion-v2-768-v"):
        return "epsilon" if architecture.endswith("512") else "v_prediction"
    if kind == "sd2" and file.weights.numbers.get("global_step") == SD2_BASE_STEPS:
        return "epsilon"
    if kind == "sd2" and file.shape(f"{UNET}input_blocks.0.0.weight")[1] == 9:
        return "epsilon"  # SD2's inpainting model
    return str(known_configs.SCHEDULERS[kind]["prediction_type"])


def _scheduler(file: _File, kind: str) -> dict[str, Any]:
    lcm = f"{UNET}time_embed.cond_proj.weight" in file.tensors
    config = dict(known_configs.LCM if lcm else known_configs.SCHEDULERS[kind])
    config["prediction_type"] = _prediction(file, kind)
    if "ztsnr" in file.tensors:  # trained to the noise without signal (arXiv:2305.08891)
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def _of_folder(file: _File) -> Contents:
    """Read a file with the config.json beside it: a component of a diffusers model."""
    config = read_json(file.path.parent / CONFIG)
    component = component_of(file.path.parent / CONFIG, config)
    part = Part(config, file.tensors, file.path)
    return Contents(kind_of({component: config}), {component: part})


def _controlnet_ldm(file: _File) -> Contents:
    prefix = CONTROL if file.under(CONTROL) else ""
    kind = _kind(file, prefix, "input_blocks.")
    config = known_configs.controlnet(kind)
    part = file.part(config, ldm_denoiser_table(prefix), prefix)
    return Contents(kind, {"controlnet": part})


def _controlnet(file: _File) -> Contents:
    kind = _kind(file, "", "down_blocks.")
    return Contents(
        kind, {"controlnet": Part(known_configs.controlnet(kind), file.tensors, file.path)}
    )


def _vae_ldm(file: _File) -> Contents:
    prefix = next((p for p in VAES if file.under(p)), "")
    kind = file.wishes.kind
    config = known_configs.vae(kind or "sd1")
    return Contents(kind or CUSTOM, {"vae": file.part(config, ldm_vae_table(prefix), prefix)})


def _vae(file: _File) -> Contents:
    kind = file.wishes.kind
    part = Part(known_configs.vae(kind or "sd1"), file.tensors, file.path)
    return Contents(kind or CUSTOM, {"vae": part})


def _tiny_vae(file: _File) -> Contents:
    part = Part({"_class_name": "AutoencoderTiny"}, file.tensors, file.path)
    return Contents(CUSTOM, {"vae": part})


def _unet_alone(file: _File) -> Contents:
    kind = _kind(file, "", "down_blocks.")
    config = known_configs.UNETS[kind] | {"in_channels": file.shape("conv_in.weight")[1]}
    guidance = file.tensors.get("time_embedding.cond_proj.weight")
    if guidance is not None:
        config |= {"time_cond_proj_dim": file.shape(guidance.name)[1]}
    return Contents(kind, {"unet": Part(config, file.tensors, file.path)})


def _has(*names: str) -> Callable[[_File], bool]:
    return lambda file: any(name in file.tensors for name in names)


# By which name each kind of file without a whole model is known, the original layouts first: they
# come without a config.
_ALONE: tuple[tuple[Callable[[_File], bool], Callable[[_File], Contents]], ...] = (
    (_has(f"{CONTROL}zero_convs.0.0.weight", "zero_convs.0.0.weight"), _controlnet_ldm),
    (_has(*(f"{p}encoder.down.0.block.0.norm1.weight" for p in (*VAES, ""))), _vae_ldm),
    (lambda file: (file.path.parent / CONFIG).is_file(), _of_folder),
    (_has("controlnet_cond_embedding.conv_in.weight"), _controlnet),
    (_has("encoder.down_blocks.0.resnets.0.norm1.weight"), _vae),
    (_has("encoder.layers.0.weight"), _tiny_vae),
    (_has("down_blocks.0.resnets.0.norm1.weight"), _unet_alone),
)


def _unknown(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: not a model that is known: {what}",
        hint="known are Stable Diffusion 1, 2, XL and its refiner, ControlNets and VAEs of theirs",
    )
