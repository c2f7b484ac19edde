"""What was asked of `macai image`: from its options, and from a picture that is made again."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macai.diffusion.image_settings import MAX_SIDE, ImageSettings, Scalar, UsedFile
from macai.errors import UsageError

OTHERS = (
    "handover",
    "enlarge",
    "enlarge_strength",
    "dtype",
    "quantize",
    "variant",
    "prediction",
    "tile",
)
"""Options that ImageSettings has no field for and that decide what a picture looks like."""

NEEDED = {
    "strength": "image",
    "mask": "image",
    "handover": "refiner",
    "enlarge_strength": "enlarge",
}
"""What an option is about."""

FILES = {
    "image": "--image",
    "mask": "--mask",
    "controls": "--controlnet and --control",
    "loras": "--lora",
    "vae": "--vae",
    "refiner": "--refiner",
}
OWN_SCHEDULER = "model"  # in settings: the one that came with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options as given; None is what was not said."""

    prompt: str | None = None
    model: str | None = None
    negative: str | None = None
    size: str | None = None
    steps: int | None = None
    guidance: float | None = None
    rescale: float | None = None
    scheduler: str | None = None
    eta: float | None = None
    seed: int | None = None
    count: int | None = None
    rng: str | None = None
    clip_skip: int | None = None
    weighted: bool | None = None
    image: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    controlnets: Sequence[str] = ()
    controls: Sequence[str] = ()
    loras: Sequence[str] = ()
    vae: Path | None = None
    refiner: str | None = None
    handover: float | None = None
    enlarge: float | None = None
    enlarge_strength: float | None = None
    dtype: str | None = None
    quantize: int | None = None
    variant: str | None = None
    prediction: str | None = None
    serial: bool = False
    tile: bool | None = None
    low_memory: bool | None = None
    taesd: Path | None = None

    def others(self) -> dict[str, Scalar]:
        """Return what settings keep by option, apart from what was not said."""
        kept = {name: getattr(self, name) for name in OTHERS}
        return {name: value for name, value in kept.items() if value is not None}

    def check(self) -> None:
        """Raise UsageError for an option that does nothing without another."""
        for name, other in NEEDED.items():
            if getattr(self, name) is not None and not getattr(self, other):
                option, needed = (f"--{n.replace('_', '-')}" for n in (name, other))
                raise UsageError(f"{option} without {needed}", hint=f"give {needed} as well")
        if len(self.controlnets) != len(self.controls):
            raise UsageError(
                f"{len(self.controlnets)} of --controlnet and {len(self.controls)} of --control",
                hint="each ControlNet needs a picture: --controlnet MODEL --control edges.png",
            )


def made_again(wanted: Wanted, settings: ImageSettings, source: Path) -> Wanted:
    """Return `wanted` with what was not said taken from a picture's settings.

    Raises:
        UsageError: the picture was made with files that were not given; they are named.
    """
    missing = [
        f"{option} ({names})"
        for name, option in FILES.items()
        if (names := _files(settings, name)) and not getattr(wanted, name)
    ]
    if missing:
        raise UsageError(
            f"{source} was made with other files too: {', '.join(missing)}",
            hint="give them again: a picture keeps their names, not where they are",
        )
    same = ("prompt", "negative", "steps", "guidance", "rescale", "eta", "seed", "rng")
    taken: dict[str, Any] = {name: getattr(settings, name) for name in same}
    taken |= {
        "size": f"{settings.width}x{settings.height}",
        "scheduler": None if settings.scheduler == OWN_SCHEDULER else settings.scheduler,
        "clip_skip": settings.clip_skip,
        "weighted": settings.weighted,
        "strength": settings.strength,
    }
    taken |= {name: settings.others[name] for name in OTHERS if name in settings.others}
    taken = {n: v for n, v in taken.items() if getattr(wanted, n) is None}
    pictures = settings.controls[1::2]  # after each ControlNet its own
    loras = _with_numbers(wanted.loras, [(f.scale,) for f in settings.loras])
    controls = _with_numbers(wanted.controls, [(f.scale, f.start, f.end) for f in pictures])
    return dataclasses.replace(wanted, **taken, loras=loras, controls=controls)


def differences(before: ImageSettings, now: ImageSettings) -> list[str]:
    """Return which options of a picture made again name other files than its own."""
    return [option for name, option in FILES.items() if _hashes(before, name) != _hashes(now, name)]


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """Return width and height of "640x512"; both None for None."""
    if text is None:
        return None, None
    width, x, height = text.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {text!r} is not WIDTHxHEIGHT", hint="for instance 640x512")
    sides = int(width), int(height)
    if min(sides) < 1:
        raise UsageError(f"--size {text}: no side may be 0", hint="for instance 640x512")
    if max(sides) > MAX_SIDE:
        raise UsageError(f"--size {text}: no side may be over {MAX_SIDE}", hint="use --enlarge")
    return sides


def parse_numbers(text: str, most: int) -> tuple[str, list[float]]:
    """Return what stands before the last ":NUMBER"s of an option, and up to `most` of those."""
    numbers: list[float] = []
    while len(numbers) < most:
        head, colon, tail = text.rpartition(":")
        try:
            number = float(tail)
        except ValueError:
            break
        if not colon or not head:
            break
        if not math.isfinite(number):
            raise UsageError(f"{text}: {tail} is no number to scale with", hint="1 is usual")
        numbers.insert(0, number)
        text = head
    return text, numbers


def _with_numbers(given: Sequence[str], numbers: Sequence[tuple[float, ...]]) -> list[str]:
    """Return options with the numbers of a picture's settings, where none are said."""
    if len(given) != len(numbers):
        return list(given)
    return [
        text if parse_numbers(text, len(of))[1] else ":".join([text, *map(str, of)])
        for text, of in zip(given, numbers, strict=True)
    ]


def _used(settings: ImageSettings, name: str) -> tuple[UsedFile, ...]:
    found = getattr(settings, name) or ()
    return found if isinstance(found, tuple) else (found,)


def _files(settings: ImageSettings, name: str) -> str:
    return ", ".join(file.name for file in _used(settings, name))


def _hashes(settings: ImageSettings, name: str) -> list[str]:
    return [file.sha256 for file in _used(settings, name)]
