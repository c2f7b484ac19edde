"""macai.json of a Stable Diffusion: what an app has to know beside the packages."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from macai.coreml.manifest import FILE
from macai.coreml.sd.form import Form
from macai.errors import PackageError

KIND = "stable-diffusion"
CONTRACT = 1
"""Raised when an app written for one version would misread the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageInfo:
    """One package of a bundle.

    Attributes:
        package: Its path in the bundle.
        sha256: Over names and bytes of its files: see package.package_hash.
        inputs: {"dtype", "shape"} by name.
        outputs: Likewise.
    """

    package: str
    sha256: str
    bytes: int
    precision: str
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SdManifest:
    """A bundle's contract.

    Attributes:
        family: "sd1", "sd2" or "custom".
        packages: By the name that Apple's package gives them: a U-Net in two is UnetChunk1 and
            UnetChunk2.
        width: Of a picture, in pixels.
        height: See `width`.
        batch: Rows of the U-Net.
        attention: How the U-Net attends: see components.COMPUTE_UNITS.
        compute_units: Where the packages are meant to run, as Core ML's configuration calls it.
        scaling_factor: The decoder is given latents / scaling_factor + shift_factor.
        shift_factor: See `scaling_factor`.
        prediction_type: "epsilon", "v_prediction" or "sample".
        scheduler: The model's own scheduler_config.json.
        source: "model", "fingerprint" of its weights, "license" and "variant" of
            its files if there are, "loras" fused into it, "controlnets" beside it.
        guidance: That is in the U-Net of an LCM; None for all others.
        functions: Of each package besides main: "width", "height" and "lora", None or what
            "loras" of `source` say of one; by name.
        palettes: Bits of weights by their layers' paths, by "unet", "text_encoder" or
            "controlnet/NAME"; others have all of theirs.
    """

    name: str
    family: str
    packages: dict[str, PackageInfo]
    width: int
    height: int
    batch: int
    attention: str
    scaling_factor: float
    shift_factor: float
    prediction_type: str
    scheduler: dict[str, Any]
    source: dict[str, Any]
    macai: str
    compute_units: str
    minimum_os: dict[str, str]
    guidance: float | None = None
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    palettes: dict[str, dict[str, int]] = field(default_factory=dict)
    kind: str = KIND
    contract: int = CONTRACT

    def parts(self, name: str) -> list[PackageInfo]:
        """Return the package of a component, or the two that it was cut into, in order."""
        names = [name] if name in self.packages else [f"{name}Chunk1", f"{name}Chunk2"]
        return [self.packages[one] for one in names]

    def unet_inputs(self) -> dict[str, dict[str, Any]]:
        """Return {"dtype", "shape"} of the U-Net's inputs, by name."""
        return self.parts("Unet")[0].inputs

    def size(self, function: str) -> tuple[int, int]:
        """Return width and height of a function's pictures; main's, if there is none."""
        own = self.functions.get(function)
        return (self.width, self.height) if own is None else (own["width"], own["height"])

    def form(self) -> Form:
        """Return what was chosen of the packages."""
        return Form(
            width=self.width,
            height=self.height,
            batch=self.batch,
            attention=self.attention,
            precision=self.parts("Unet")[0].precision,
            guidance=self.guidance,
        )

    def sizes(self) -> list[tuple[int, int]]:
        """Return width and height of the functions for other sizes."""
        own = (one for one in self.functions.values() if one["lora"] is None)
        return [(one["width"], one["height"]) for one in own]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def is_sd_bundle(folder: Path) -> bool:
    """Return whether a folder says of itself that it is a bundle of Stable Diffusion."""
    try:
        value = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("kind") == KIND


def read_sd_manifest(folder: Path) -> SdManifest:
    """Read macai.json of a bundle.

    Raises:
        PackageError: there is none, or it is not what this version of macai writes.
    """
    file = folder / FILE
    try:
        return _manifest(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise PackageError(
            f"{file}: not a manifest: {type(e).__name__}: {e}", hint="export the bundle again"
        ) from e


def _manifest(value: Mapping[str, Any]) -> SdManifest:
    if (value["kind"], value["contract"]) != (KIND, CONTRACT):
        raise ValueError(f"{value['kind']} {value['contract']}, this version reads {CONTRACT}")
    packages = {name: PackageInfo(**info) for name, info in value["packages"].items()}
    if outside := [p.package for p in packages.values() if not _is_inside(p.package)]:
        raise ValueError(f"it names a package that is not in it: {outside[0]}")
    return SdManifest(**(dict(value) | {"packages": packages}))


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in path.split("/")
