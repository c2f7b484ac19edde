"""What makes a picture the one it is: kept in its PNG as JSON, and in the form other tools read.

Read from files of strangers: every key and type is checked, nothing is guessed.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import macai
from macai.errors import FormatError, UsageError

SCHEMA = 1
MAX_TEXT = 2**20
"""In characters, of all settings as JSON."""

Scalar = str | int | float | bool | None

_SAMPLERS = {
    "ddim": "DDIM",
    "pndm": "PLMS",
    "euler": "Euler",
    "euler-a": "Euler a",
    "heun": "Heun",
    "dpm++2m": "DPM++ 2M",
    "dpm++2m-karras": "DPM++ 2M Karras",
    "dpm++sde": "DPM++ SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
_RNG = {"torch": "CPU", "cuda": "NV"}
_END = 2**64
MAX_SIDE = 2**14
_RANGES = {
    "width": (1, MAX_SIDE),
    "height": (1, MAX_SIDE),
    "steps": (1, 10_000),
    "guidance": (-1000, 1000),
    "seed": (0, _END - 1),
    "clip_skip": (0, 100),
    "eta": (0, 100),
    "rescale": (0, 1),
    "strength": (0, 1),
}
"""Beyond them a file is not to be followed, whoever made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedFile:
    """A file that went into a picture.

    Attributes:
        name: Its last path component: a path would tell strangers about a disk.
        sha256: Of its bytes, 64 hex digits.
        scale: How strongly it was used.
        start: The share of the steps before which it was not, for a ControlNet.
        end: The share of the steps after which it was not.
    """

    name: str
    sha256: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @classmethod
    def of(cls, path: Path, *, scale: float = 1.0) -> "UsedFile":
        """Describe a file; UsageError if it cannot be read."""
        try:
            with path.open("rb") as f:
                digest = hashlib.file_digest(f, "sha256")
        except OSError as e:
            raise UsageError(f"{path}: {e.strerror}") from e
        return cls(name=path.name, sha256=digest.hexdigest(), scale=scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """Everything that is needed to make a picture again.

    Attributes:
        prompt, negative: As given; negative None is not "": see `pipeline.Request`.
        width, height: In pixels.
        steps, guidance, scheduler, eta, rescale, seed, rng, clip_skip, weighted: As in `Request`;
            seed is that of this picture, not of the first of its batch.
        model: Its name or the last part of its path.
        model_hash: Of its weights.
        strength: How much of `image` was made anew; None without one.
        image, mask: What the picture started from.
        controls: ControlNets and their pictures, one after the other.
        loras: Adapters.
        vae, refiner: Other models that had a part in it; their hashes are of their weights.
        others: What else the command line said, by option.
        version: Of the macai that made it.
    """

    prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    scheduler: str
    seed: int
    rng: str
    model: str
    model_hash: str
    negative: str | None = None
    eta: float | None = None
    rescale: float = 0.0
    clip_skip: int = 0
    weighted: bool = True
    strength: float | None = None
    image: UsedFile | None = None
    mask: UsedFile | None = None
    controls: tuple[UsedFile, ...] = ()
    loras: tuple[UsedFile, ...] = ()
    vae: UsedFile | None = None
    refiner: UsedFile | None = None
    others: Mapping[str, Scalar] = field(default_factory=dict)
    version: str = macai.__version__

    def to_json(self) -> str:
        """Return ASCII JSON; ValueError for numbers that are not finite."""
        value = {"schema": SCHEMA} | dataclasses.asdict(self)
        return json.dumps(value, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "ImageSettings":
        """Read `to_json`'s text.

        Raises:
            FormatError: not JSON, of a newer schema, or a key or value that is wrong; names
                `source` and the key.
        """
        if len(text) > MAX_TEXT:
            raise FormatError(f"{source}: its settings are {len(text):,} characters long")
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as e:
            raise FormatError(f"{source}: its settings are not JSON") from e
        if not isinstance(value, dict):
            raise FormatError(f"{source}: its settings are not a JSON object")
        schema = value.pop("schema", None)
        if type(schema) is not int or schema < 1:
            raise FormatError(f"{source}: its settings have no schema number")
        if schema > SCHEMA:
            raise FormatError(
                f"{source}: settings of schema {str(schema)[:20]}, and this macai knows {SCHEMA}",
                hint="a newer macai made it: upgrade",
            )
        settings = _read_object(cls, value, source)
        for name, _ in settings.out_of_range():
            raise _wrong(f"{source}: {name}", getattr(settings, name))
        return settings

    def out_of_range(self) -> Iterator[tuple[str, str]]:
        """Yield names of numbers that no picture is made with, and from what to what they go."""
        for name, (low, high) in _RANGES.items():
            number = getattr(self, name)
            if number is not None and not low <= number <= high:  # NaN is neither
                yield name, f"{low} to {high}"

    def parameters(self) -> str:
        """Return what stable-diffusion-webui writes, which many tools show.

        Prompt with its adapters, negative prompt, then names and values on one line.
        """
        loras = "".join(f" <lora:{Path(f.name).stem}:{f.scale:g}>" for f in self.loras)
        lines = [f"{self.prompt}{loras}"]
        if self.negative:
            lines.append(f"Negative prompt: {self.negative}")
        values: dict[str, Any] = {
            "Steps": self.steps,
            "Sampler": _SAMPLERS.get(self.scheduler, self.scheduler),
            "CFG scale": f"{self.guidance:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.model_hash[:10],
            "Model": self.model,
        }
        if self.strength is not None:
            values["Denoising strength"] = f"{self.strength:g}"
        if self.clip_skip:
            values["Clip skip"] = self.clip_skip + 1
        values["RNG"] = _RNG.get(self.rng, self.rng)
        values["Version"] = f"macai {self.version}"
        lines.append(", ".join(f"{name}: {_quoted(str(v))}" for name, v in values.items()))
        return "\n".join(lines).replace("\0", "")  # PNG text has no such character


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


_T = typing.TypeVar("_T")


def _read_object(cls: type[_T], value: Any, where: str) -> _T:
    if not isinstance(value, dict):
        raise FormatError(f"{where} is not a JSON object")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := value.keys() - fields.keys():
        raise FormatError(f"{where}: unknown setting {min(unknown)[:40]!r}")
    required = {n for n, f in fields.items() if f.default is f.default_factory is MISSING}
    if missing := required - value.keys():
        raise FormatError(f"{where}: no {min(missing)}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _read(hints[name], v, f"{where}: {name}") for name, v in value.items()})


def _read(kind: Any, value: Any, where: str) -> Any:
    """Check a JSON value against an annotation, and make of it what that says."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise FormatError(f"{where} is not a list")
        return tuple(_read(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise FormatError(f"{where} is not a JSON object")
        return {k: _read(arguments[1], v, f"{where}.{k[:40]}") for k, v in value.items()}
    kinds = arguments if origin is types.UnionType else (kind,)
    if value is None and type(None) in kinds:
        return None
    for one in kinds:
        if isinstance(one, type) and dataclasses.is_dataclass(one):
            return _read_object(one, value, where)
    return _read_scalar(kinds, value, where)


def _read_scalar(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    kind = type(value)
    if kind is int and kind not in kinds and abs(value) < _END:
        kind, value = float, float(value)
    if kind in (str, bool, int, float) and kind in kinds and _is_sane(value):
        return value
    raise _wrong(where, value)


def _is_sane(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return abs(value) < _END  # false for what is no number


def _wrong(where: str, value: Any) -> FormatError:
    return FormatError(f"{where} is {ascii(value)[:40]}")
