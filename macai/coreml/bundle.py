"""A language model to a bundle: package, contract, tokenizer, model card, and code for an app."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai import __version__
from macai.coreml.api import ExportFunction, export_functions
from macai.coreml.card import model_card
from macai.coreml.cast import DTYPE_NAMES, cast_weights
from macai.coreml.compress import Compression
from macai.coreml.description import Metadata
from macai.coreml.licence import licence_files, licence_name
from macai.coreml.llm import llm_functions
from macai.coreml.manifest import FILE, FunctionInfo, Manifest
from macai.coreml.package import package_bytes, package_hash
from macai.coreml.swift import write_swift_package
from macai.errors import UsageError
from macai.files import write_json
from macai.models.adapter import load_adapter
from macai.models.fuse import QUANTISATION_KEYS, companion_files, fuse
from macai.models.load import LoadedModel, dequantise, load_model
from macai.models.lora import lora_layers

WEIGHTS = ("full", "keep")
PRECISIONS = {"fp16": mx.float16, "fp32": mx.float32}


def write_bundle(
    loaded: LoadedModel,
    folder: Path,
    *,
    name: str,
    source: dict[str, str],
    context: int,
    prefill: Sequence[int] = (64,),
    precision: str = "fp16",
    weights: str = "full",
    compression: Compression | None = None,
    adapters: Mapping[str, Path] | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Manifest:
    """Write all of a bundle but what it was verified with, into an empty folder.

    Args:
        loaded: The model, opened as stored; its adapter is fused and its weights are changed.
        folder: An existing, empty folder.
        name: What package, Swift module and model card are called.
        source: Where the model came from, as the manifest tells: "model", and if known "adapter"
            and "license", which else is what the model's card says.
        context: The most positions, a multiple of 32.
        prefill: Lengths of the prefill functions.
        precision: "fp16" or "fp32".
        weights: How matrices are stored: "full", in `precision`, or "keep": quantised ones as the
            model has them, the same numbers. With a compression, what that is called.
        compression: How matrices are stored instead: see fewer_bits.py.
        adapters: Folders of adapters that get functions of their own, by name: they share all
            weights of the plain model.
        progress: Called with what is being done, and how much of it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision '{precision}'", hint=f"one of {', '.join(PRECISIONS)}")
    if compression is None and weights not in WEIGHTS:
        raise UsageError(f"unknown weights '{weights}'", hint=f"one of {', '.join(WEIGHTS)}")
    if licence := source.get("license") or licence_name(loaded.path):
        source = source | {"license": licence}
    progress("preparing weights", 0, 3)
    settle_weights(loaded, PRECISIONS[precision], keep_quantised=weights == "keep")
    options: dict[str, Any] = {"context": context, "prefill": prefill, "precision": precision}
    options["compress"] = compression
    functions = llm_functions(loaded.model, **options)
    plain = list(functions)
    named: list[dict[str, Any]] = []
    for adapter, path in (adapters or {}).items():
        model = with_adapter(loaded, path, PRECISIONS[precision], keep_quantised=weights == "keep")
        own = llm_functions(model, adapter=adapter, **options)
        named.append({"name": adapter, "functions": dict(zip(plain, own, strict=True))})
        functions |= own
    progress("building the package", 1, 3)
    package = folder / f"{name}.mlpackage"
    export_functions(
        functions, package, default="decode", metadata=_metadata(loaded, name, source, context)
    )
    progress("writing the bundle", 2, 3)
    manifest = replace(
        _manifest(loaded, package, functions, name=name, source=source, precision=precision),
        adapters=named,
        weights=precision if weights == "full" else weights,
    )
    for file in {*companion_files(loaded.path), *licence_files(loaded.path)}:
        shutil.copyfile(file, folder / file.name)
    config = {k: v for k, v in loaded.config.items() if k not in QUANTISATION_KEYS}
    write_json(folder / "config.json", config)
    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
    write_json(folder / FILE, manifest.to_json())
    write_swift_package(folder / "Swift", manifest.to_json())
    progress("writing the bundle", 3, 3)
    return manifest


def settle_weights(loaded: LoadedModel, dtype: mx.Dtype, *, keep_quantised: bool = False) -> None:
    """Fuse, dequantise and cast all weights to `dtype`, one by one, in place.

    Args:
        loaded: The model, opened as stored.
        dtype: What floats become.
        keep_quantised: Leave what is quantised as it is; an adapter cannot be fused then.

    Raises:
        ExportError: a weight is not finite in `dtype`.
    """
    if lora_layers(loaded.model):
        if keep_quantised:
            raise UsageError(
                "an adapter cannot be fused into quantised weights that are kept",
                hint="leave out --weights keep",
            )
        fuse(loaded, dtype=dtype)
    elif not keep_quantised:
        dequantise(loaded.model)
    cast_weights(loaded.model, dtype)


def with_adapter(
    loaded: LoadedModel, adapter: Path, dtype: mx.Dtype, *, keep_quantised: bool = False
) -> nn.Module:
    """Return another model that shares all arrays of a settled one and has an adapter, of `dtype`.

    Raises:
        AdapterError: it does not belong to the model.
    """
    other = load_model(loaded.path, as_stored=True)
    if not keep_quantised:
        dequantise(other.model)
    other.model.update(loaded.model.parameters())
    load_adapter(other, adapter)
    for layer in lora_layers(other.model).values():
        layer.lora_A = layer.lora_A.astype(dtype)
        layer.lora_B = (layer.scale * layer.lora_B).astype(dtype)
        layer.scale = 1.0
    return other.model


def bundle_name(text: str) -> str:
    """Return a name for files and modules: letters, digits, - and _, beginning with a letter."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")
    return name if name[:1].isalpha() else f"Model-{name}".rstrip("-")


def _metadata(loaded: LoadedModel, name: str, source: dict[str, str], context: int) -> Metadata:
    """What the package says, also for tools that know nothing of macai."""
    return Metadata(
        author=f"macai {__version__}",
        license=source.get("license", ""),
        description=f"{name}: a language model; its state holds {context} tokens",
        version="1",
        user={"macai.model": source["model"], "macai.model_type": loaded.config["model_type"]},
        inputs={
            "inputIds": "Token ids",
            "position": "Position of the first of them",
            "last": "Row whose logits are wanted: the last token's",
        },
        outputs={"logits": "Scores of the next token"},
    )


def _manifest(
    loaded: LoadedModel,
    package: Path,
    functions: dict[str, ExportFunction],
    *,
    name: str,
    source: dict[str, str],
    precision: str,
) -> Manifest:
    decode = functions["decode"]
    context = next(iter(decode.states.values())).shape[3]
    vocab = vocab_size(loaded)
    logits = {"logits": {"dtype": precision, "shape": [1, 1, vocab]}}
    return Manifest(
        name=name,
        package=package.name,
        sha256=package_hash(package),
        bytes=package_bytes(package),
        functions={
            label: FunctionInfo(
                tokens=f.inputs["inputIds"].shape[1], inputs=_specs(f.inputs), outputs=logits
            )
            for label, f in functions.items()
        },
        states={label: spec | {"dtype": "fp16"} for label, spec in _specs(decode.states).items()},
        context=context,
        vocab_size=vocab,
        eos_token_ids=sorted(loaded.eos_token_ids),
        bos_token_id=loaded.config.get("bos_token_id"),
        precision=precision,
        weights=precision,
        source=source,
        macai=__version__,
    )


def vocab_size(loaded: LoadedModel) -> int:
    """Return the number of logits, from the model's shapes alone."""
    logits: mx.array = loaded.model(mx.zeros((1, 1), mx.int32))  # not evaluated
    return int(logits.shape[-1])


def _specs(arrays: Any) -> dict[str, dict[str, Any]]:
    return {k: {"dtype": DTYPE_NAMES[a.dtype], "shape": list(a.shape)} for k, a in arrays.items()}
