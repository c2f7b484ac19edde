"""Opens a model, makes pictures of it and writes them: what `macai image` does."""

import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.catalog import locate_pipeline
from macai.cli.image_wanted import OWN_SCHEDULER, Wanted, made_again, parse_numbers, parse_size
from macai.cli.loras import read_loras
from macai.cli.progress import reporting
from macai.diffusion.fingerprint import fingerprint
from macai.diffusion.image_settings import ImageSettings, UsedFile
from macai.diffusion.images import (
    read_control,
    read_mask,
    read_picture,
    read_settings,
    require_png,
    to_bytes,
    write_picture,
)
from macai.diffusion.loading import Checkpoint, open_checkpoint
from macai.diffusion.lora.apply import fuse
from macai.diffusion.lora.formats import LoraFile
from macai.diffusion.make import Extras, Progress, make
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.diffusion.predict import Control
from macai.diffusion.preview import Preview, inline_image, linear_preview, tiny_preview
from macai.errors import OutputError, UsageError

PREVIEW_SECONDS = 2.0  # between two previews


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model with what was put into it."""

    name: str
    checkpoint: Checkpoint
    pipeline: Pipeline
    loras: list[tuple[LoraFile, float]]
    used: list[UsedFile]


def run(
    wanted: Wanted, *, out: Path, again: Path | None, preview: bool, force: bool, as_json: bool
) -> None:
    """Make the pictures and print where they are."""
    require_png(out)
    settings = read_settings(again) if again else None
    if again and settings:
        wanted = made_again(wanted, settings, again)
    if wanted.prompt is None:
        raise UsageError("no prompt", hint='give one: macai image "a red apple" --model MODEL')
    targets = _targets(out, wanted.count or 1)
    for target in targets:
        if target.exists() and not force:
            raise OutputError(f"{target} exists already", hint="choose another --out, or --force")
    opened = _open(wanted)
    if settings and settings.model_hash != fingerprint(opened.checkpoint):
        print(f"warning: {again} was made with another model, {settings.model}", file=sys.stderr)
    request, controls = _request(wanted, opened)
    extras = _extras(wanted)
    mx.reset_peak_memory()
    began = time.perf_counter()
    pictures, calls = _make(opened.pipeline, request, extras, _preview(wanted, opened, preview))
    seconds = time.perf_counter() - began
    files = []
    for k, (target, picture) in enumerate(zip(targets, to_bytes(pictures), strict=True)):
        described = _settings(wanted, request, opened, controls, k)
        write_picture(target, picture, described)
        files.append({"path": str(target), "seed": described.seed})
    if as_json:
        print(json.dumps(_report(files, described, opened, seconds, calls), ensure_ascii=False))
        return
    for file in files:
        print(f"{file['path']}  seed {file['seed']}")


def _open(wanted: Wanted) -> _Opened:
    if wanted.model is None:
        raise UsageError("no model", hint="give one: --model FOLDER, FILE or hub id")
    checkpoint = _checkpoint(wanted.model, wanted)
    loras, used = read_loras(wanted.loras, checkpoint)
    vae = None
    if wanted.vae is not None:
        vae = open_checkpoint(wanted.vae, dtype=_dtype(wanted), kind=checkpoint.kind)

    def prepare(name: str, module: nn.Module) -> None:
        if loras and name != "vae":
            fuse({name: module}, loras)

    parts = Parts(
        checkpoint, vae=vae, prepare=prepare, short_memory=wanted.low_memory, tile=wanted.tile
    )
    pipeline = Pipeline(parts, serial=wanted.serial)
    return _Opened(Path(wanted.model).name, checkpoint, pipeline, loras, used)


def _checkpoint(name: str, wanted: Wanted) -> Checkpoint:
    return open_checkpoint(
        locate_pipeline(name, variant=wanted.variant),
        dtype=_dtype(wanted),
        variant=wanted.variant,
        quantize=wanted.quantize,
        prediction_type=wanted.prediction,
    )


def _dtype(wanted: Wanted) -> str:
    on_cpu = mx.default_device() == mx.cpu
    return wanted.dtype or ("float32" if on_cpu else "float16")


def _request(wanted: Wanted, opened: _Opened) -> tuple[Request, list[UsedFile]]:
    parts = opened.pipeline.parts
    config, width_height = parts.unet_config, parse_size(wanted.size)
    consistency = config.time_cond_proj_dim is not None
    usual = 8.5 if consistency else 7.5 if parts.time_ids is None else 5.0
    request = Request(
        prompt=wanted.prompt or "",
        negative=wanted.negative,
        width=width_height[0],
        height=width_height[1],
        steps=wanted.steps or (4 if consistency else 25),
        guidance=usual if wanted.guidance is None else wanted.guidance,
        rescale=wanted.rescale or 0.0,
        scheduler=wanted.scheduler,
        eta=wanted.eta,
        seed=secrets.randbelow(1 << 32) if wanted.seed is None else wanted.seed,
        count=wanted.count or 1,
        rng=wanted.rng or "torch",
        clip_skip=wanted.clip_skip or 0,
        weighted=wanted.weighted is not False,
        strength=0.8 if wanted.strength is None else wanted.strength,
    )
    size = None if None in width_height else (int(width_height[0] or 0), int(width_height[1] or 0))
    if wanted.image is not None:
        request = replace(request, picture=read_picture(wanted.image, size))
    width, height = opened.pipeline.size(request)
    if wanted.mask is not None:
        request = replace(request, mask=read_mask(wanted.mask, (width, height)))
    controls, used = _controls(wanted, (width, height))
    return replace(request, controls=controls), used


def _controls(wanted: Wanted, size: tuple[int, int]) -> tuple[list[Control], list[UsedFile]]:
    if len(wanted.controlnets) != len(wanted.controls):
        raise UsageError(
            f"{len(wanted.controlnets)} of --controlnet and {len(wanted.controls)} of --control",
            hint="each ControlNet needs a picture: --controlnet MODEL --control edges.png",
        )
    controls, used = [], []
    for model, spec in zip(wanted.controlnets, wanted.controls, strict=True):
        name, numbers = parse_numbers(spec, 3)
        scale, start, end = [*numbers, *(1.0, 0.0, 1.0)[len(numbers) :]]
        checkpoint = _checkpoint(model, wanted)
        shown = mx.array(read_control(Path(name), size))
        net: Any = checkpoint.load("controlnet")
        controls.append(Control(net=net, picture=shown, scale=scale, start=start, end=end))
        net_used = UsedFile(name=Path(model).name, sha256=fingerprint(checkpoint), scale=scale)
        used += [net_used, UsedFile.of(Path(name), scale=scale)]
    return controls, used


def _extras(wanted: Wanted) -> Extras:
    refiner = None
    if wanted.refiner is not None:
        refiner = Pipeline(Parts(_checkpoint(wanted.refiner, wanted)), serial=wanted.serial)
    return Extras(
        refiner=refiner,
        handover=0.8 if wanted.handover is None else wanted.handover,
        enlarge=wanted.enlarge or 1.0,
        enlarge_strength=0.5 if wanted.enlarge_strength is None else wanted.enlarge_strength,
    )


def _make(
    pipeline: Pipeline, request: Request, extras: Extras, show: Callable[[Progress], None]
) -> tuple[np.ndarray, list[float]]:
    """Return the pictures, and the seconds of each call of the U-Net."""
    steps = make(pipeline, request, extras)
    calls: list[float] = []
    with reporting() as progress:
        while True:
            try:
                made = next(steps)
            except StopIteration as end:
                return end.value, calls
            calls.append(made.step.seconds)
            progress(made.phase, made.step.done, made.step.total)
            show(made)


def _preview(wanted: Wanted, opened: _Opened, asked: bool) -> Callable[[Progress], None]:
    """Return what shows a step; nothing where that was not asked or cannot be."""
    if not asked:
        return lambda made: None
    if not sys.stderr.isatty() or inline_image(np.zeros((1, 1, 3), np.uint8)) is None:
        print("no previews: this terminal is not known to show pictures", file=sys.stderr)
        return lambda made: None
    tiny: Any = None if wanted.taesd is None else open_checkpoint(wanted.taesd).load("vae")
    shown, draw = 0.0, None if tiny is None else tiny_preview(tiny)

    def show(made: Progress) -> None:
        nonlocal shown, draw
        if time.monotonic() - shown < PREVIEW_SECONDS:
            return
        drawn: Preview = draw or linear_preview(opened.pipeline.parts.vae)
        draw = drawn
        print(inline_image(drawn(made.step.denoised)), end="", file=sys.stderr, flush=True)
        shown = time.monotonic()

    return show


def _settings(
    wanted: Wanted,
    request: Request,
    opened: _Opened,
    controls: Sequence[UsedFile],
    k: int,
) -> ImageSettings:
    """Describe the picture `k` of a request; an enlarged one by its size before that."""
    width, height = opened.pipeline.size(request)
    return ImageSettings(
        prompt=request.prompt,
        negative=request.negative,
        width=width,
        height=height,
        steps=request.steps,
        guidance=request.guidance,
        rescale=request.rescale,
        scheduler=request.scheduler or OWN_SCHEDULER,
        eta=request.eta,
        seed=request.seed + k,
        rng=request.rng,
        clip_skip=request.clip_skip,
        weighted=request.weighted,
        strength=None if request.picture is None else request.strength,
        image=UsedFile.of(wanted.image) if wanted.image else None,
        mask=UsedFile.of(wanted.mask) if wanted.mask else None,
        controls=tuple(controls),
        loras=tuple(opened.used),
        model=opened.name,
        model_hash=fingerprint(opened.checkpoint),
        others=wanted.others(),
    )


def _targets(out: Path, count: int) -> list[Path]:
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{k + 1}{out.suffix}") for k in range(count)]


def _report(
    files: list[dict[str, Any]],
    settings: ImageSettings,
    opened: _Opened,
    seconds: float,
    calls: list[float],
) -> dict[str, Any]:
    return {
        "images": files,
        "model": settings.model,
        "model_hash": settings.model_hash,
        "prompt": settings.prompt,
        "width": settings.width,
        "height": settings.height,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "scheduler": settings.scheduler,
        "rng": settings.rng,
        "loras": [{"file": lora.name, "matched": lora.matched} for lora, _ in opened.loras],
        "seconds": seconds,
        "call_seconds": calls,
        "peak_memory_bytes": mx.get_peak_memory(),
    }
