"""Rules about bundles: what macai.json promises, against the package beside it."""

import json
from collections.abc import Iterator
from hashlib import file_digest, sha256
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from macai.mil.features import Range, TensorSpec
from macai.mil.function import Function
from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import MANIFEST, Bundle, Subject

CONTRACT = 1
CHUNKED = 2
"""The contract of a bundle of several packages."""
_UNITS = ("all", "cpuAndGPU", "cpuAndNeuralEngine", "cpuOnly")
_KEYS = (
    "bytes", "compute_units", "context", "eos_token_ids", "functions", "minimum_os", "name",
    "package", "sha256", "source", "states", "vocab_size",
)  # fmt: skip
_CONTEXT_AXIS = -2
_SYSTEMS = {"iOS": (0, 15, 16, 17, 18, 26), "macOS": (0, 12, 13, 14, 15, 26)}
"""The first systems that load specification 5, 6, 7, 8, 9, 10."""
_FIRST_SPECIFICATION = 5


@rule(
    "bundle-manifest",
    "error",
    f"{MANIFEST} is not what an app can read",
    why="The app's code decodes all of it, and refuses another contract.",
    fix="Export the bundle again, with the macai whose code the app has.",
)
def bundle_manifest(subject: Subject) -> Iterator[Finding]:
    bundle = subject.bundle
    if bundle is None:
        return
    if bundle.problem:
        yield Finding(bundle.problem)
        return
    missing = [key for key in _KEYS if key not in bundle.manifest]
    if missing:
        yield Finding(f"no {', '.join(missing)}")
    known = CHUNKED if bundle.chunks else CONTRACT
    if bundle.manifest.get("contract") != known:
        given = json.dumps(bundle.manifest.get("contract"))
        yield Finding(f"contract {given}, known is {known}")
    units = bundle.manifest.get("compute_units", "all")
    if units not in _UNITS:
        yield Finding(f"compute_units {json.dumps(units)} is none of {', '.join(_UNITS)}")


@rule(
    "bundle-systems",
    "error",
    f"{MANIFEST} promises a system that cannot load the package",
    why="A specification version is loaded by the system it came with, and later ones; an older "
    "one stops.",
    fix="Raise minimum_os, or export for the older system.",
)
def bundle_systems(subject: Subject) -> Iterator[Finding]:
    promised = subject.bundle.part("minimum_os") if subject.bundle else {}
    index = subject.package.specification_version - _FIRST_SPECIFICATION
    for system, versions in _SYSTEMS.items():
        major = str(promised.get(system, "")).partition(".")[0]
        needed = versions[min(max(index, 0), len(versions) - 1)]
        if major.isdecimal() and int(major) < needed:
            version = subject.package.specification_version
            yield Finding(f"{system} {major}, specification {version} needs {needed}")


@rule(
    "bundle-hash",
    "error",
    f"The package is not the one {MANIFEST} is about",
    why="It was changed or damaged after the export: what was verified is something else.",
    fix="Export the bundle again.",
)
def bundle_hash(subject: Subject) -> Iterator[Finding]:
    bundle, package = subject.bundle, subject.package
    if bundle is None:
        return
    size = bundle.number("bytes")
    if size is not None and size != package.size_bytes:
        yield Finding(f"{package.size_bytes} bytes, and {size} in {MANIFEST}")
    expected = bundle.manifest.get("sha256")
    if isinstance(expected, str) and expected != (own := _package_hash(package.path)):
        yield Finding(f"SHA-256 {own[:12]}…, and {expected[:12]}… in {MANIFEST}")


def _package_hash(path: Path) -> str:
    """Return the SHA-256 over name, zero byte and SHA-256 of each file, in order of the names."""
    digest = sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as f:
            digest.update(file_digest(f, "sha256").digest())
    return digest.hexdigest()


@rule(
    "bundle-functions",
    "error",
    f"Functions, inputs or outputs are not as {MANIFEST} says",
    why="The app makes its arrays by it: 'MultiArray shape does not match' at the first call.",
    fix="Export the bundle again.",
)
def bundle_functions(subject: Subject) -> Iterator[Finding]:
    if subject.bundle is None or "functions" not in subject.bundle.manifest:
        return
    promised = subject.bundle.part("functions")
    functions = subject.package.functions
    for name in sorted(promised.keys() ^ functions.keys()):
        yield Finding(f"only {MANIFEST if name in promised else 'the package'} has it", name)
    if not {"decode", "main"} & promised.keys():
        yield Finding("there is no function decode, nor main")
    for name in sorted(promised.keys() & functions.keys()):
        yield from _function_differences(promised[name], functions[name])
    for adapter in subject.bundle.manifest.get("adapters") or []:
        for name in _adapter_functions(adapter):
            if name not in functions:
                yield Finding(f"an adapter needs function {name}")


def _function_differences(promised: Any, function: Function) -> Iterator[Finding]:
    info = promised if isinstance(promised, dict) else {}
    for kind, own in (("inputs", function.inputs), ("outputs", function.outputs)):
        for message in _differences(info.get(kind), own):
            yield Finding(f"{kind}: {message}", function.name)
    ids = function.inputs.get("inputIds")
    size = _shape(ids)[-1:]
    most = {d.upper if isinstance(d, Range) else d for d in size}
    if most and info.get("tokens") not in most:
        yield Finding(f"tokens {info.get('tokens')}, inputIds is {ids}", function.name)


def _shape(spec: TensorSpec | None) -> tuple[Any, ...]:
    """Return the shape of an input or output, () if it has none."""
    return spec.shape if spec and spec.shape else ()


def _adapter_functions(adapter: Any) -> list[str]:
    names = adapter.get("functions") if isinstance(adapter, dict) else None
    values = names.values() if isinstance(names, dict) else names
    return [n for n in values or [] if isinstance(n, str)]


def _differences(promised: Any, own: dict[str, TensorSpec]) -> Iterator[str]:
    """Yield what differs between {"dtype", "shape"} by name and what the package has."""
    given = promised if isinstance(promised, dict) else {}
    for name in sorted(given.keys() ^ own.keys()):
        yield f"only {MANIFEST if name in given else 'the package'} has {name}"
    for name in sorted(given.keys() & own.keys()):
        spec = given[name] if isinstance(given[name], dict) else {}
        dtype, shape = spec.get("dtype"), spec.get("shape")
        for given_shape in (shape, spec.get("most", shape)):
            fits = isinstance(given_shape, list) and own[name].accepts(tuple(given_shape))
            if dtype != own[name].dtype or not fits:
                yield f"{name} is {own[name]}, {dtype} {given_shape} in {MANIFEST}"
                break


@rule(
    "bundle-states",
    "error",
    f"States are not as {MANIFEST} says",
    why="The app plans memory and the length of a conversation by it.",
    fix="Export the bundle again.",
)
def bundle_states(subject: Subject) -> Iterator[Finding]:
    if subject.bundle is None or "states" not in subject.bundle.manifest:
        return
    promised = subject.bundle.part("states") | _slot_states(subject.bundle)
    for view in subject.views:
        for message in _differences(promised, view.function.states):
            yield Finding(message, view.name)


def _slot_states(bundle: Bundle) -> dict[str, Any]:
    """Return the state of the slot, if there is one, as the others are told of."""
    slot = bundle.part("slot")
    name = slot.get("state")
    return {str(name): {"dtype": "fp16", "shape": slot.get("shape")}} if name else {}


@rule(
    "bundle-slot",
    "error",
    f"The slot for an adapter is not as {MANIFEST} says",
    why="The app writes an adapter's matrices where it is told to: a wrong place is another "
    "layer's, or behind the end; and a function that writes there destroys them.",
    fix="Export the bundle again.",
)
def bundle_slot(subject: Subject) -> Iterator[Finding]:
    slot = subject.bundle.part("slot") if subject.bundle else {}
    if not slot:
        return
    try:
        size, spans = prod(slot["shape"]), sorted(_spans(slot))
    except (AttributeError, KeyError, TypeError) as e:
        yield Finding(f"{MANIFEST} does not describe it: {type(e).__name__}: {e}")
        return
    for begin, end, layer in spans:
        if begin < 0 or end > size:
            yield Finding(f"{layer} is at {begin} to {end} of {size}")
    for (_, end, layer), (begin, _, other) in pairwise(spans):
        if begin < end:
            yield Finding(f"{layer} and {other} share places")
    for view in subject.views:
        for write in view.of("write_state", "coreml_update_state"):
            if slot.get("state") in (view.argument(write, p) for p in ("input", "state")):
                yield Finding("it is written to", view.name, write.name)


def _spans(slot: dict[str, Any]) -> Iterator[tuple[int, int, str]]:
    """Yield the first place of each matrix, that behind its last, and its layer."""
    for layer, place in slot["layers"].items():
        for start, width in (("a", "inputs"), ("b", "outputs")):
            yield place[start], place[start] + slot["rank"] * place[width], layer


@rule(
    "bundle-context",
    "error",
    f"The context is not what the states hold, as {MANIFEST} says it",
    why="Beyond what the states hold, a write goes astray or fails (ANEMLL#54).",
    fix="Export the bundle again.",
)
def bundle_context(subject: Subject) -> Iterator[Finding]:
    context = subject.bundle.number("context") if subject.bundle else None
    for view in subject.views if context is not None else ():
        for name, spec in view.function.states.items():
            shape = spec.shape or ()
            if name.startswith(("keyCache", "valueCache", "kvCache")) and shape[
                _CONTEXT_AXIS:-1
            ] != (context,):
                yield Finding(f"context {context}, state {name} is {spec}", view.name)


@rule(
    "context-beyond-model",
    "warning",
    "The context is longer than the model was made for",
    why="Positions it never saw give nonsense, unless its RoPE was scaled for them.",
    fix="Export with a context of at most max_position_embeddings.",
)
def context_beyond_model(subject: Subject) -> Iterator[Finding]:
    bundle = subject.bundle
    if bundle is None:
        return
    context, most = (
        bundle.number("context"),
        bundle.json("config.json").get("max_position_embeddings"),
    )
    if context is not None and isinstance(most, int) and context > most:
        yield Finding(f"context {context}, max_position_embeddings {most}")


@rule(
    "bundle-vocabulary",
    "error",
    "Scores, vocabulary and tokenizer differ in size",
    why="A token without a score is never chosen, a score without a token cannot be shown; ids "
    "beyond the embedding read whatever is there.",
    fix="Ship the tokenizer that the model was trained with.",
)
def bundle_vocabulary(subject: Subject) -> Iterator[Finding]:
    bundle = subject.bundle
    size = bundle.number("vocab_size") if bundle else None
    if bundle is None or size is None:
        return
    for view in subject.views:
        shape = _shape(view.function.outputs.get("logits"))
        if shape and shape[-1] != size:
            yield Finding(f"vocab_size {size}, logits are {list(shape)}", view.name)
    largest = max([*_vocabulary_ids(bundle.tokenizer), *bundle.token_ids.values()], default=-1)
    if largest >= size:
        yield Finding(f"vocab_size {size}, the tokenizer has id {largest}")


def _vocabulary_ids(tokenizer: dict[str, Any]) -> list[int]:
    """Return ids of tokenizer.json, the largest among them."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return [i for i in vocabulary.values() if isinstance(i, int)]
    return [len(vocabulary) - 1] if isinstance(vocabulary, list) else []


@rule(
    "bundle-verification",
    "warning",
    "The package did not agree with its model, or was not compared",
    why="verify.json is what the export found when it ran the package against the model.",
    fix="macai verify PACKAGE --against MODEL",
)
def bundle_verification(subject: Subject) -> Iterator[Finding]:
    if subject.bundle is None:
        return
    there = (subject.bundle.folder / "verify.json").exists()
    reports = subject.bundle.json("verify.json") if there else {}
    if not reports:
        yield Finding("verify.json holds no comparison" if there else "there is no verify.json")
    for name, report in reports.items():
        if not isinstance(report, dict) or report.get("passed") is not True:
            yield Finding(f"verify.json says that {name} did not pass")
