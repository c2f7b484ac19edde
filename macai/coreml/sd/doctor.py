"""What Apple's package and the apps on it make of a bundle, and what they will stumble over.

Facts from the sources of apple/ml-stable-diffusion, MochiDiffusion, Guernika and
huggingface/swift-coreml-diffusers.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from macai.coreml.package import package_hash
from macai.coreml.sd.compiled import histogram
from macai.coreml.sd.manifest import PackageInfo, SdManifest
from macai.errors import PackageError
from macai.mil import Package, open_package

APPLE, MOCHI, GUERNIKA, DIFFUSERS = (
    "Apple's package", "Mochi Diffusion", "Guernika", "swift-coreml-diffusers",
)  # fmt: skip
_LARGE = 1_000_000_000
_SD_SCALE = 0.18215
_GUERNIKA_KEYS = ("identifier", "converter_version", "attention_implementation", "compute_unit")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an app will stumble over.

    Attributes:
        level: "error": it does not load or makes no picture; "warning": it may not, or makes
            another than is wanted; "note": what its user has to know.
        app: Whose contract it is.
        what: What is the matter.
        fix: What to do.
    """

    level: str
    app: str
    what: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def examine(folder: Path, manifest: SdManifest) -> list[Finding]:
    """Look through a bundle; nothing is run."""
    opened: dict[str, Package] = {}
    found = []
    for name, info in manifest.packages.items():
        try:
            opened[name] = open_package(folder / info.package)
        except PackageError as e:
            found.append(Finding("error", APPLE, f"{name}: {e.message}", "export the bundle again"))
            continue
        found += _changed(name, info, folder / info.package)
    found += _files(folder)
    found += _features(opened)
    found += _pipeline(manifest)
    found += _apps(manifest, opened)
    found += _neural_engine(manifest, opened)
    return sorted(found, key=lambda one: ("error", "warning", "note").index(one.level))


def _changed(name: str, info: PackageInfo, path: Path) -> Iterator[Finding]:
    if package_hash(path) != info.sha256:
        yield Finding(
            "error",
            APPLE,
            f"{name} is not the package that macai.json is about",
            "export the bundle again: what was verified is something else",
        )


def _files(folder: Path) -> Iterator[Finding]:
    for name in ("vocab.json", "merges.txt"):
        if not (folder / "Resources" / name).is_file():
            yield Finding("error", APPLE, f"Resources/{name} is missing", "export the bundle again")
    if not list((folder / "Resources").glob("*.mlmodelc")):
        yield Finding(
            "note",
            APPLE,
            "the packages are not compiled",
            "in Xcode they are; by hand, on a Mac: xcrun coremlcompiler compile (README.md)",
        )


_INPUTS = {
    "TextEncoder": {"input_ids"},
    "TextEncoder2": {"input_ids"},
    "Unet": {"sample", "timestep", "encoder_hidden_states"},
    "UnetChunk1": {"sample", "timestep", "encoder_hidden_states"},
    "VAEDecoder": {"z"},
    "VAEEncoder": {"x"},
}
_OUTPUTS = {"Unet": 1, "UnetChunk2": 1, "ControlledUnet": 1, "VAEDecoder": 1, "VAEEncoder": 1}


def _features(opened: dict[str, Package]) -> Iterator[Finding]:
    again = "export the bundle again"
    for name, package in opened.items():
        main = package.functions[package.default_function]
        if missing := sorted(_INPUTS.get(name, set()) - main.inputs.keys()):
            yield Finding("error", APPLE, f"{name} has no input {', '.join(missing)}", again)
        if name.startswith("TextEncoder") and len(main.inputs) != 1:
            yield Finding("error", APPLE, f"{name} has several inputs: the first is fed", again)
        if _OUTPUTS.get(name, len(main.outputs)) != len(main.outputs):
            yield Finding("error", APPLE, f"{name} has several outputs: the first is read", again)
        if narrow := [n for n, spec in main.outputs.items() if spec.dtype != "fp32"]:
            what = f"{name}: {', '.join(narrow)} is no float32, and is read as such"
            yield Finding("error", APPLE, what, again)


def _pipeline(manifest: SdManifest) -> Iterator[Finding]:
    inputs = manifest.unet_inputs()
    is_xl = "time_ids" in inputs
    if is_xl and manifest.batch != 2:
        yield Finding(
            "error",
            APPLE,
            "its SDXL pipeline feeds a U-Net two rows, and this one takes one",
            "--batch 2, and a guidance of 1 for a Turbo",
        )
    if inputs["sample"]["shape"][1] != 4:
        yield Finding(
            "error",
            APPLE,
            f"it feeds 4 channels, and this U-Net takes {inputs['sample']['shape'][1]}",
            "it has no inpainting with such models: run the packages with code of your own",
        )
    if manifest.prediction_type != "epsilon":
        yield Finding(
            "error",
            APPLE,
            "its schedulers are for models that predict noise; this one's is "
            f"{manifest.prediction_type}",
            "use a scheduler of your own",
        )
    if abs(manifest.scaling_factor - _SD_SCALE) > 1e-6 or manifest.shift_factor:
        yield Finding(
            "note",
            APPLE,
            f"latents are scaled by {manifest.scaling_factor:g}, not by {_SD_SCALE}",
            "set encoderScaleFactor and decoderScaleFactor: pictures are hazy otherwise",
        )
    if manifest.guidance is not None:
        yield Finding(
            "note",
            APPLE,
            f"the guidance, {manifest.guidance:g}, is in the U-Net",
            "set guidanceScale to 1, and use a scheduler for LCMs",
        )


def _apps(manifest: SdManifest, opened: dict[str, Package]) -> Iterator[Finding]:
    unet = opened.get("Unet") or opened.get("UnetChunk1")
    if unet is None:
        return
    kinds = histogram(unet.functions[unet.default_function])
    if manifest.attention != "original" and "Ios16.einsum" not in kinds:
        yield Finding(
            "warning",
            f"{MOCHI}, {GUERNIKA}",
            "no Ios16.einsum in the U-Net: it is taken for one of original attention, for a GPU",
            "leave out other sizes and --function, which need a newer set of operations",
        )
    if "VAEEncoder" not in opened:
        what = "no VAEEncoder, by which the size of pictures is told"
        yield Finding("warning", MOCHI, what, "export the bundle again")
    if missing := [key for key in _GUERNIKA_KEYS if key not in unet.metadata]:
        yield Finding("warning", GUERNIKA, f"no {', '.join(missing)}", "export the bundle again")
    yield Finding(
        "note",
        DIFFUSERS,
        "it downloads a zip of compiled packages",
        f"call it {manifest.name}_{manifest.attention}_compiled.zip at the repository's root",
    )


def _neural_engine(manifest: SdManifest, opened: dict[str, Package]) -> Iterator[Finding]:
    if manifest.compute_units != "cpuAndNeuralEngine":
        return
    for name, package in opened.items():
        if name in ("Unet", "ControlledUnet") and package.weight_bytes > _LARGE:
            yield Finding(
                "warning",
                APPLE,
                f"{name} has {package.weight_bytes / 1e6:.0f} MB: phones do not load it",
                "--chunk 1000",
            )
        wide = sum(
            "fp32" in str(type_)
            for op in package.functions[package.default_function].operations
            if op.type in ("matmul", "einsum", "softmax")
            for type_ in op.outputs.values()
        )
        if wide:
            yield Finding(
                "warning",
                APPLE,
                f"{name} attends in float32 in {wide} places, which the Neural Engine has not",
                "a GPU is faster for this model: --attention original",
            )
