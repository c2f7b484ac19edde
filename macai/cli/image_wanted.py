"""What was asked of `macai image`: from its options, and from a picture that is made again."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macai.diffusion.image_settings import ImageSettings, Scalar
from macai.errors import UsageError

OTHERS = (
    "handover",
    "enlarge",
    "enlarge_strength",
    "dtype",
    "quantize",
    "variant",
    "prediction",
)
"""Options that ImageSettings has no field for and that decide what a picture looks like."""

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
    tile: bool = False
    low_memory: bool | None = None
    taesd: Path | None = None

    def others(self) -> dict[str, Scalar]:
        """Return what settings keep by option, apart from what was not said."""
        kept = {name: getattr(self, name) for name in OTHERS}
        kept["vae"] = self.vae.name if self.vae else None
        kept["refiner"] = Path(self.refiner).name if self.refiner else None
        return {name: value for name, value in kept.items() if value is not None}


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
        "size": None if settings.image else f"{settings.width}x{settings.height}",
        "scheduler": None if settings.scheduler == OWN_SCHEDULER else settings.scheduler,
        "clip_skip": settings.clip_skip,
        "weighted": settings.weighted,
        "strength": settings.strength,
    }
    taken |= {name: settings.others[name] for name in OTHERS if name in settings.others}
    return dataclasses.replace(
        wanted, **{n: v for n, v in taken.items() if getattr(wanted, n) is None}
    )


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """Return width and height of "640x512"; both None for None."""
    if text is None:
        return None, None
    width, x, height = text.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {text!r} is not WIDTHxHEIGHT", hint="for instance 640x512")
    return int(width), int(height)


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
        numbers.insert(0, number)
        text = head
    return text, numbers


def _files(settings: ImageSettings, name: str) -> str:
    if name in ("vae", "refiner"):
        return str(settings.others.get(name) or "")
    found = getattr(settings, name) or ()
    return ", ".join(file.name for file in (found if isinstance(found, tuple) else (found,)))
