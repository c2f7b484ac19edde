"""Opens what `macai image` makes pictures with: a model and what is put into it, ControlNets."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.catalog import locate_pipeline, pipeline_names
from macai.cli.image_wanted import Wanted, parse_numbers
from macai.cli.loras import Loras, read_loras
from macai.diffusion.fingerprint import fingerprint
from macai.diffusion.image_settings import UsedFile
from macai.diffusion.images import read_control
from macai.diffusion.loading import Checkpoint, open_checkpoint
from macai.diffusion.loading.known_configs import KINDS
from macai.diffusion.lora.apply import fuse
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline
from macai.diffusion.predict import Control
from macai.errors import UsageError

OWN_MODEL = "emoji-diffusion"  # what comes with macai: it draws emoji, of 64 pixels a side


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model with what was put into it, and what it works together with.

    Attributes:
        name: Of the model.
        hash: Of its weights.
        pipeline: It, ready to make pictures.
        refiner: The model that takes over for the last steps; None goes without.
        loras: With their scales.
        used: Other models and files that went into it, by the names ImageSettings has for them.
    """

    name: str
    hash: str
    pipeline: Pipeline
    refiner: Pipeline | None = None
    loras: Loras = ()
    used: dict[str, Any] = field(default_factory=dict)


def open_model(wanted: Wanted) -> Opened:
    """Open the model, read LoRAs and say what of them matched; weights are not loaded yet."""
    model = _model(wanted)
    checkpoint = _checkpoint(model, wanted)
    loras, used_loras = read_loras(wanted.loras, checkpoint)
    used: dict[str, Any] = {"loras": used_loras}
    vae, refiner = None, None
    if wanted.vae is not None:
        kind = checkpoint.kind if checkpoint.kind in KINDS else None
        vae = open_checkpoint(wanted.vae, dtype=dtype_of(wanted), kind=kind)
        used["vae"] = _used(str(wanted.vae), vae)

    def prepare(name: str, module: nn.Module) -> None:
        if loras and name != "vae":
            fuse({name: module}, loras)

    def pipeline_of(source: Checkpoint, **options: Any) -> Pipeline:
        short, tile = wanted.low_memory, bool(wanted.tile)
        parts = Parts(source, vae=vae, short_memory=short, tile=tile, **options)
        return Pipeline(parts, serial=wanted.serial)

    if wanted.refiner is not None:
        second = _checkpoint(wanted.refiner, wanted)
        refiner, used["refiner"] = pipeline_of(second), _used(wanted.refiner, second)
    return Opened(
        name=Path(model).name,
        hash=fingerprint(checkpoint),
        pipeline=pipeline_of(checkpoint, prepare=prepare),
        refiner=refiner,
        loras=loras,
        used=used,
    )


def _model(wanted: Wanted) -> str:
    if wanted.model is not None:
        return wanted.model
    if OWN_MODEL not in pipeline_names():
        raise UsageError("no model", hint="give one: --model FOLDER, FILE or hub id")
    print(f"no --model: {OWN_MODEL} draws it, an emoji of 64 pixels a side", file=sys.stderr)
    return OWN_MODEL


def open_controls(wanted: Wanted, size: tuple[int, int]) -> tuple[list[Control], list[UsedFile]]:
    """Load ControlNets and read their pictures at a size, and describe both, one after the other.

    Args:
        wanted: As many ControlNets as pictures.
        size: Width and height in pixels.
    """
    controls, used = [], []
    for model, spec in zip(wanted.controlnets, wanted.controls, strict=True):
        name, numbers = parse_numbers(spec, 3)
        scale, start, end = [*numbers, *(1.0, 0.0, 1.0)[len(numbers) :]]
        if not 0 <= start < end <= 1:
            raise UsageError(
                f"--control {spec}: not on from {start:g} to {end:g} of the steps",
                hint="for instance edges.png:0.8:0:0.5, on for the first half",
            )
        shown = mx.array(read_control(Path(name), size))
        checkpoint = _checkpoint(model, wanted)
        net: Any = checkpoint.load("controlnet")
        controls.append(Control(net=net, picture=shown, scale=scale, start=start, end=end))
        both = (_used(model, checkpoint), UsedFile.of(Path(name)))
        used += [replace(file, scale=scale, start=start, end=end) for file in both]
    return controls, used


def dtype_of(wanted: Wanted) -> str:
    """Return what is computed in: a GPU is fastest with float16, a CPU with float32."""
    on_cpu = mx.default_device() == mx.cpu
    return wanted.dtype or ("float32" if on_cpu else "float16")


def _checkpoint(name: str, wanted: Wanted) -> Checkpoint:
    return open_checkpoint(
        locate_pipeline(name, variant=wanted.variant),
        dtype=dtype_of(wanted),
        variant=wanted.variant,
        quantize=wanted.quantize,
        prediction_type=wanted.prediction,
    )


def _used(name: str, checkpoint: Checkpoint) -> UsedFile:
    return UsedFile(name=Path(name).name, sha256=fingerprint(checkpoint))
