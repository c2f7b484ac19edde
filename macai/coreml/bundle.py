"""A language model to a bundle: package, contract, tokenizer, model card, and code for an app."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai import __version__
from macai.coreml.api import ExportFunction
from macai.coreml.card import model_card
from macai.coreml.cast import DTYPE_NAMES, cast_weights
from macai.coreml.chunks import export_chunks, plan_chunks
from macai.coreml.compress import Compression
from macai.coreml.cut import HIDDEN_IN, HIDDEN_OUT
from macai.coreml.description import Metadata
from macai.coreml.half import fit_float16
from macai.coreml.licence import licence_files, licence_name
from macai.coreml.manifest import CHUNKED, CONTRACT, FILE, Chunk, FunctionInfo, Manifest
from macai.coreml.package import package_bytes, package_hash
from macai.coreml.profiles import Profile
from macai.coreml.profiles.gpu import GPU
from macai.coreml.slot import Slot, SlotOptions
from macai.coreml.slot_model import add_slot
from macai.coreml.swift import write_swift_package
from macai.errors import UsageError
from macai.files import write_json
from macai.mil import open_package
from macai.mil.features import TensorSpec
from macai.models.adapter import load_adapter
from macai.models.fuse import QUANTISATION_KEYS, companion_files, fuse
from macai.models.identity import identify
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
    profile: Profile = GPU,
    prefill: Sequence[int] = (),
    precision: str = "fp16",
    weights: str = "full",
    compression: Compression | None = None,
    adapters: Mapping[str, Path] | None = None,
    slot: SlotOptions | None = None,
    chunks: int | None = None,
    text: Sequence[int] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Manifest:
    """Write all of a bundle but what it was verified with, into an empty folder.

    Args:
        loaded: The model, opened as stored; its adapter is fused and its weights are changed.
        folder: An existing, empty folder.
        name: What package, Swift module and model card are called.
        source: Where the model came from, as the manifest tells: "model", and if known "adapter",
            "repository", and "license", which else is what the model's card says.
        context: The most positions, a multiple of 32.
        profile: For what it is exported.
        prefill: Lengths of the prefill functions; the profile's own if not given.
        precision: "fp16" or "fp32".
        weights: How matrices are stored: "full", in `precision`, or "keep": quantised ones as the
            model has them, the same numbers. With a compression, what that is called.
        compression: How matrices are stored instead: see fewer_bits.py.
        adapters: Folders of adapters that get functions of their own, by name: they share all
            weights of the plain model.
        slot: Room for an adapter at run time, instead of those.
        chunks: In how many packages the layers are; as few as the profile allows if not given.
        text: Token ids that tell how large values become: see half.py. Nothing is measured without,
            nor of several packages.
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
    options: dict[str, Any] = {"context": context, "precision": precision}
    options |= {"prefill": prefill or profile.prefill, "compress": compression}
    if slot is not None:
        base = identify(loaded.path, chat_template=loaded.tokenizer.chat_template)
        options["slot"] = add_slot(loaded.model, slot, base.to_json())
    layers = _divided(loaded.model, profile, compression, chunks)
    functions = profile.functions(loaded.model, layers, **options)
    plain = list(functions)
    named: list[dict[str, Any]] = []
    for adapter, path in (adapters or {}).items():
        model = with_adapter(loaded, path, PRECISIONS[precision], keep_quantised=weights == "keep")
        own = profile.functions(model, layers, adapter=adapter, **options)
        named.append({"name": adapter, "functions": dict(zip(plain, own, strict=True))})
        functions |= own
    progress("building the package", 1, 3)
    packages = _package_paths(folder, name, len(layers))
    metadata = _metadata(loaded, name, source, context, profile)
    export_chunks(functions, packages, default=profile.default, metadata=metadata)
    progress("writing the bundle", 2, 3)
    told: dict[str, Any] = {"name": name, "source": source, "context": context}
    told["slot"] = options["slot"].slot if slot else None
    manifest = replace(
        _manifest(loaded, packages, functions, **told, precision=precision),
        adapters=named,
        weights=precision if weights == "full" else weights,
        profile=profile.name,
        compute_units=profile.compute_units,
        unverified=list(profile.unverified),
    )
    if text and precision == "fp16" and not manifest.chunks:
        progress("measuring how large values become", 2, 3)
        manifest = fit_float16(folder, manifest, text, widens=profile.float32)
    _write_rest(loaded, folder, manifest, profile)
    progress("writing the bundle", 3, 3)
    return manifest


def _write_rest(loaded: LoadedModel, folder: Path, manifest: Manifest, profile: Profile) -> None:
    """Write what lies beside the package."""
    for file in {*companion_files(loaded.path), *licence_files(loaded.path)}:
        shutil.copyfile(file, folder / file.name)
    config = {k: v for k, v in loaded.config.items() if k not in QUANTISATION_KEYS}
    write_json(folder / "config.json", config)
    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
    write_json(folder / FILE, manifest.to_json())
    if profile.swift and not manifest.chunks:  # its code runs one package
        write_swift_package(folder / "Swift", manifest.to_json())


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
    config = load_adapter(other, adapter)
    if config.use_dora or config.modules_to_save:
        raise UsageError(
            f"{adapter}: only an adapter of A and B alone can be one of several in a package",
            hint="export with this one adapter, which is fused",
        )
    for layer in lora_layers(other.model).values():
        layer.lora_A = layer.lora_A.astype(dtype)
        layer.lora_B = (layer.scale * layer.lora_B).astype(dtype)
        layer.scale = 1.0
    return other.model


def bundle_name(text: str) -> str:
    """Return a name for files and modules: letters, digits, - and _, beginning with a letter."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")
    return name if name[:1].isalpha() else f"Model-{name}".rstrip("-")


def _metadata(
    loaded: LoadedModel, name: str, source: dict[str, str], context: int, profile: Profile
) -> Metadata:
    """What the package says, also for tools that know nothing of macai."""
    user = {"macai.model": source["model"], "macai.model_type": loaded.config["model_type"]}
    if profile.repository_key and "repository" in source:
        user[profile.repository_key] = source["repository"]
    return Metadata(
        author=f"macai {__version__}",
        license=source.get("license", ""),
        description=f"{name}: a language model; its state holds {context} tokens",
        version="1",
        user=user,
        inputs={**profile.inputs, HIDDEN_IN: "What the package before returned"},
        outputs={"logits": "Scores of the next token", HIDDEN_OUT: "What the next package takes"},
    )


def _package_paths(folder: Path, name: str, count: int) -> list[Path]:
    ends = [f"-{n}of{count}" for n in range(1, count + 1)] if count > 1 else [""]
    return [folder / f"{name}{end}.mlpackage" for end in ends]


def _divided(
    model: nn.Module, profile: Profile, compression: Compression | None, count: int | None
) -> list[range]:
    """Return the layers of each package."""
    if count is not None and count > 1 and profile.chunk_bytes is None:
        raise UsageError(
            f"profile {profile.name} has all layers in one package", hint="leave out --chunks"
        )

    def stored_bytes(path: str, array: mx.array) -> int:
        outcome = compression.outcomes.get(path) if compression else None
        return outcome.bytes if outcome else array.nbytes

    # Files have entries and gaps besides weights, and there are tables of positions.
    most = profile.chunk_bytes and int(0.98 * profile.chunk_bytes)
    return plan_chunks(model, stored_bytes=stored_bytes, most_bytes=most, count=count)


def _manifest(
    loaded: LoadedModel,
    packages: Sequence[Path],
    functions: dict[str, ExportFunction],
    *,
    name: str,
    source: dict[str, str],
    context: int,
    slot: Slot | None,
    precision: str,
) -> Manifest:
    first = next(iter(functions.values()))
    vocab = vocab_size(loaded)
    infos = {label: _info(f, precision, vocab) for label, f in functions.items()}
    chunks = [_chunk(path, infos) for path in packages] if len(packages) > 1 else []
    hashes = [c.sha256 for c in chunks] or [package_hash(packages[0])]
    return Manifest(
        name=name,
        package=packages[0].name,
        sha256=hashes[0] if not chunks else sha256("".join(hashes).encode()).hexdigest(),
        bytes=sum(map(package_bytes, packages)),
        functions=infos,
        states={
            label: spec | {"dtype": "fp16"}
            for label, spec in _specs(first.states).items()
            if slot is None or label != slot.state
        },
        slot=slot,
        context=context,
        vocab_size=vocab,
        eos_token_ids=sorted(loaded.eos_token_ids),
        bos_token_id=loaded.config.get("bos_token_id"),
        precision=precision,
        weights=precision,
        source=source,
        macai=__version__,
        chunks=chunks,
        contract=CHUNKED if chunks else CONTRACT,
    )


def _info(function: ExportFunction, precision: str, vocab: int) -> FunctionInfo:
    """Describe a function, as the package does."""
    inputs = _specs(function.inputs)
    logits: dict[str, Any] = {"dtype": precision, "shape": [1, 1, vocab]}
    for label, axes in function.flexible.items():
        most = list(inputs[label]["shape"])
        for axis, size in axes.items():
            most[axis] = size.most
        inputs[label]["most"] = most
    tokens = inputs["inputIds"].get("most", inputs["inputIds"]["shape"])[1]
    if "most" in inputs["inputIds"]:  # a row for each token
        logits["most"] = [1, tokens, vocab]
    return FunctionInfo(tokens=tokens, inputs=inputs, outputs={"logits": logits})


def _chunk(path: Path, infos: Mapping[str, FunctionInfo]) -> Chunk:
    """Describe one package of several, as it was written."""
    functions = open_package(path).functions
    return Chunk(
        package=path.name,
        sha256=package_hash(path),
        bytes=package_bytes(path),
        functions={
            label: replace(
                info,
                inputs=_written(functions[label].inputs),
                outputs=_written(functions[label].outputs),
            )
            for label, info in infos.items()
        },
        states=_written(next(iter(functions.values())).states),
    )


def _written(specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": s.dtype, "shape": list(s.default_shape or ())} for name, s in specs.items()
    }


def vocab_size(loaded: LoadedModel) -> int:
    """Return the number of logits, from the model's shapes alone."""
    logits: mx.array = loaded.model(mx.zeros((1, 1), mx.int32))  # not evaluated
    return int(logits.shape[-1])


def _specs(arrays: Any) -> dict[str, dict[str, Any]]:
    return {k: {"dtype": DTYPE_NAMES[a.dtype], "shape": list(a.shape)} for k, a in arrays.items()}
