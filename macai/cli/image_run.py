"""Opens a model, makes pictures of it and writes them: what `macai image` does."""

import json
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np

from macai.cli.image_open import Opened, dtype_of, open_controls, open_model
from macai.cli.image_wanted import OWN_SCHEDULER, Wanted, differences, made_again, parse_size
from macai.cli.progress import reporting, show_picture
from macai.diffusion.image_settings import ImageSettings, UsedFile
from macai.diffusion.images import (
    read_mask,
    read_picture,
    read_settings,
    require_png,
    to_bytes,
    write_picture,
)
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.make import Extras, Progress, make
from macai.diffusion.models.autoencoder_tiny import AutoencoderTiny
from macai.diffusion.pipeline import Pipeline, Request
from macai.diffusion.preview import Preview, inline_image, linear_preview, tiny_preview
from macai.diffusion.prompt import chunk_prompts
from macai.errors import OutputError, UsageError
from macai.files import require_writable

Value = TypeVar("Value")
PREVIEW_SECONDS = 2.0  # between two previews


class Times(NamedTuple):
    """Where the time of a picture goes, in seconds.

    Attributes:
        seconds: All of it.
        text: Until the first step: weights are read, the prompt is encoded.
        calls: Of each step.
        decode: After the last one.
    """

    seconds: float
    text: float
    calls: list[float]
    decode: float


def run(
    wanted: Wanted, *, out: Path, again: Path | None, preview: bool, force: bool, as_json: bool
) -> None:
    """Make the pictures and print where they are."""
    targets = _targets(out, wanted.count or 1, force=force)
    before = read_settings(again) if again else None
    if again and before:
        wanted = made_again(wanted, before, again)
    wanted = replace(wanted, dtype=dtype_of(wanted))
    wanted.check()
    if wanted.prompt is None:
        raise UsageError("no prompt", hint='give one: macai image "a red apple" --model MODEL')
    opened = open_model(wanted)
    request, settings = _request(wanted, opened)
    if before:
        _compare(before, settings, source=again)
    _warn_of_what_is_not_read(request, opened)
    extras = Extras(
        refiner=opened.refiner,
        handover=_or(wanted.handover, 0.8),
        enlarge=_or(wanted.enlarge, 1.0),
        enlarge_strength=_or(wanted.enlarge_strength, 0.5),
    )
    show = _preview(wanted, opened, preview)
    mx.reset_peak_memory()
    pictures, times = _make(opened.pipeline, request, extras, show)
    files = []
    for k, (target, picture) in enumerate(zip(targets, to_bytes(pictures), strict=True)):
        own = replace(settings, seed=settings.seed + k)
        write_picture(target, picture, own)
        files.append({"path": str(target), "seed": own.seed})
    if as_json:
        print(json.dumps(_report(files, settings, opened, times), ensure_ascii=False))
        return
    for file in files:
        print(f"{file['path']}  seed {file['seed']}")


def _targets(out: Path, count: int, *, force: bool) -> list[Path]:
    """Return the files to write; an error now, if they could not be written in the end."""
    require_png(out)
    require_writable(out.parent)
    targets = [out]
    if count > 1:
        targets = [out.with_name(f"{out.stem}-{k + 1}{out.suffix}") for k in range(count)]
    for target in targets:
        if target.is_dir():
            raise OutputError(f"{target} is a folder", hint="choose another --out")
        if target.exists() and not force:
            raise OutputError(f"{target} exists already", hint="choose another --out, or --force")
    return targets


def _request(wanted: Wanted, opened: Opened) -> tuple[Request, ImageSettings]:
    """Return what to make, checked but for what `make` checks, and how its pictures say it."""
    parts = opened.pipeline.parts
    width_height = parse_size(wanted.size)
    consistency = parts.unet_config.time_cond_proj_dim is not None
    usual = 8.5 if consistency else 7.5 if parts.time_ids is None else 5.0
    request = Request(
        prompt=wanted.prompt or "",
        negative=wanted.negative,
        width=width_height[0],
        height=width_height[1],
        steps=_or(wanted.steps, 4 if consistency else 25),
        guidance=_or(wanted.guidance, usual),
        rescale=_or(wanted.rescale, 0.0),
        scheduler=wanted.scheduler,
        eta=wanted.eta,
        seed=secrets.randbelow(1 << 32) if wanted.seed is None else wanted.seed,
        count=wanted.count or 1,
        rng=wanted.rng or "torch",
        clip_skip=wanted.clip_skip or 0,
        weighted=wanted.weighted is not False,
        strength=_or(wanted.strength, 0.8),
    )
    size = None if None in width_height else (int(width_height[0] or 0), int(width_height[1] or 0))
    if wanted.image is not None:
        request = replace(request, picture=read_picture(wanted.image, size))
    width, height = opened.pipeline.size(request)
    settings = _settings(wanted, request, opened, (width, height))
    for name, allowed in settings.out_of_range():
        option = f"--{name.replace('_', '-')}"
        raise UsageError(
            f"{option} cannot be {getattr(settings, name)}", hint=f"it goes from {allowed}"
        )
    if wanted.mask is not None:
        request = replace(request, mask=read_mask(wanted.mask, (width, height)))
    controls, used = open_controls(wanted, (width, height))
    return replace(request, controls=controls), replace(settings, controls=tuple(used))


def _settings(
    wanted: Wanted, request: Request, opened: Opened, size: tuple[int, int]
) -> ImageSettings:
    """Describe the first picture of a request; an enlarged one by its size before that."""
    return ImageSettings(
        prompt=request.prompt,
        negative=request.negative,
        width=size[0],
        height=size[1],
        steps=request.steps,
        guidance=request.guidance,
        rescale=request.rescale,
        scheduler=request.scheduler or OWN_SCHEDULER,
        eta=request.eta,
        seed=request.seed,
        rng=request.rng,
        clip_skip=request.clip_skip,
        weighted=request.weighted,
        strength=None if request.picture is None else request.strength,
        image=UsedFile.of(wanted.image) if wanted.image else None,
        mask=UsedFile.of(wanted.mask) if wanted.mask else None,
        model=opened.name,
        model_hash=opened.hash,
        others=wanted.others(),
        **opened.used,
    )


def _compare(before: ImageSettings, now: ImageSettings, *, source: Path | None) -> None:
    """Say where a picture is not made again of what it was made of."""
    if before.model_hash != now.model_hash:
        print(f"warning: {source} was made with another model, {before.model}", file=sys.stderr)
    for option in differences(before, now):
        print(f"warning: {source} was made with another {option}", file=sys.stderr)


def _warn_of_what_is_not_read(request: Request, opened: Opened) -> None:
    """Say which words of the prompts do not reach the picture."""
    parts = opened.pipeline.parts
    if request.negative and not opened.pipeline.guided(request):
        print(
            f"warning: --negative is not read: guidance is off at {request.guidance:g}"
            if parts.unet_config.time_cond_proj_dim is None
            else "warning: --negative is not read: this model has its guidance built in",
            file=sys.stderr,
        )
    prompts = [request.prompt, request.negative or ""]
    chunked = chunk_prompts(prompts, parts.tokenizers, weights=request.weighted)
    for cut in sorted({chunks.cut for of in chunked for chunks in of} - {""}):
        print(f"warning: too long, and not read: {cut!r}", file=sys.stderr)


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value


def _make(
    pipeline: Pipeline, request: Request, extras: Extras, show: Callable[[Progress], None]
) -> tuple[np.ndarray, Times]:
    steps = make(pipeline, request, extras)
    began = time.perf_counter()
    before, calls, now = 0.0, list[float](), began
    with reporting() as progress:
        while True:
            try:
                made = next(steps)
            except StopIteration as end:
                ended = time.perf_counter()
                return end.value, Times(ended - began, before, calls, ended - now)
            now = time.perf_counter()
            before = before if calls else now - made.step.seconds - began
            calls.append(made.step.seconds)
            progress(made.phase, made.step.done, made.step.total)
            show(made)


def _tiny(path: Path) -> AutoencoderTiny:
    model = open_checkpoint(path).load("vae")
    if not isinstance(model, AutoencoderTiny):
        raise UsageError(f"{path}: not a tiny autoencoder", hint="--taesd takes TAESD or TAESDXL")
    return model


def _preview(wanted: Wanted, opened: Opened, asked: bool) -> Callable[[Progress], None]:
    """Return what shows a step; nothing where that was not asked or cannot be."""
    if not asked:
        if wanted.taesd is not None:
            raise UsageError("--taesd without --preview", hint="give --preview as well")
        return lambda made: None
    if not sys.stderr.isatty() or inline_image(np.zeros((1, 1, 3), np.uint8)) is None:
        print("no previews: this terminal is not known to show pictures", file=sys.stderr)
        return lambda made: None
    shown, draw = 0.0, None if wanted.taesd is None else tiny_preview(_tiny(wanted.taesd))

    def show(made: Progress) -> None:
        nonlocal shown, draw
        if time.monotonic() - shown < PREVIEW_SECONDS:
            return
        drawn: Preview = draw or linear_preview(opened.pipeline.parts.vae)
        draw = drawn
        show_picture(inline_image(drawn(made.step.denoised)) or "")
        shown = time.monotonic()

    return show


def _report(
    files: list[dict[str, Any]],
    settings: ImageSettings,
    opened: Opened,
    times: Times,
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
        "seconds": times.seconds,
        "text_seconds": times.text,
        "call_seconds": times.calls,
        "decode_seconds": times.decode,
        "peak_memory_bytes": mx.get_peak_memory(),
    }
