"""Rules about weights: how they are compressed, how much there is, what is there twice."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from statistics import median

import numpy as np

from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import Subject
from macai.mil.lint.view import View
from macai.mil.program import Operation
from macai.mil.types import TensorType

_GB = 10**9
_MATRIX = {
    "linear": ("weight",), "conv": ("weight",), "conv_transpose": ("weight",), "matmul": ("x", "y"),
}  # fmt: skip
_DUPLICATE_BYTES = 1 << 14
_LARGE_BYTES = 1 << 20
_SPARE = 128
"""What a weight takes in its file besides itself, at most: its entry, and filling up to 64."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the weight file, as one function has it."""

    view: View
    name: str
    type: TensorType
    stored: np.ndarray


def _weights(subject: Subject) -> dict[int, Weight]:
    """Return the tensors of the weight file, each once, by address."""
    found: dict[int, Weight] = {}
    for view in subject.views:
        for maker, parameter, value in view.constants():
            if value.stored is not None and isinstance(value.type, TensorType):
                name = maker.name if maker.type == "const" else f"{maker.name}.{parameter}"
                place = value.stored.ctypes.data
                found.setdefault(place, Weight(view, name, value.type, value.stored))
    return found


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@rule(
    "weights-over-2gb",
    "warning",
    "More than 2 GB of weights",
    why="'Error in declaring network' on systems and units that cannot address them "
    "(coremltools#1807).",
    fix="Compress the weights or split the model.",
)
def weights_over_2gb(subject: Subject) -> Iterator[Finding]:
    if subject.package.weight_bytes >= 1 << 31:
        yield Finding(_megabytes(subject.package.weight_bytes))


@rule(
    "weights-over-1gb",
    "note",
    "More than 1 GB of weights",
    why="Beyond some 1.4 GB a program silently leaves an iPhone's Neural Engine for the GPU, or "
    "the app is killed (CoreML-LLM).",
    fix="Split the model into chunks of at most 1 GB.",
    neural_engine=True,
)
def weights_over_1gb(subject: Subject) -> Iterator[Finding]:
    if subject.package.weight_bytes > _GB:
        yield Finding(_megabytes(subject.package.weight_bytes))


@rule(
    "duplicate-weights",
    "warning",
    "The same weight is stored twice",
    why="Tied embeddings, or functions that should share weights and do not: coremltools stores a "
    "weight for each function unless they have one weight_id.",
    fix="Share the constant between its uses, and name it alike in all functions.",
)
def duplicate_weights(subject: Subject) -> Iterator[Finding]:
    groups: dict[tuple[int, bytes], list[Weight]] = defaultdict(list)
    for weight in _weights(subject).values():
        size = len(weight.stored)
        if size >= _DUPLICATE_BYTES:
            groups[size, weight.stored[:1024].tobytes()].append(weight)
    for (size, _), candidates in groups.items():
        alike: dict[bytes, list[Weight]] = defaultdict(list)
        for weight in candidates if len(candidates) > 1 else ():
            alike[sha256(weight.stored.data).digest()].append(weight)
        for same in alike.values():
            if len(same) > 1:
                names = ", ".join(f"{w.name} ({w.view.name})" for w in same)
                waste = _megabytes(size * (len(same) - 1))
                yield Finding(f"{names}: {waste} more than needed")


@rule(
    "unused-weight-bytes",
    "warning",
    "The weight file has bytes that no function uses",
    why="They are shipped and downloaded for nothing: what is left of weights that were replaced.",
    fix="Export again instead of editing the package.",
)
def unused_weight_bytes(subject: Subject) -> Iterator[Finding]:
    weights = _weights(subject).values()
    used = sum(len(w.stored) + _SPARE for w in weights)
    spare = subject.package.weight_bytes - used
    if weights and spare > max(1 << 16, subject.package.weight_bytes // 50):
        yield Finding(f"{_megabytes(spare)} of {_megabytes(subject.package.weight_bytes)}")


@rule(
    "large-fp32-weight",
    "warning",
    "A large weight in float32 in a function in float16",
    why="Twice the download and the memory: mostly an embedding or a head that was cast in the "
    "graph instead of in the file.",
    fix="Store it float16.",
)
def large_fp32_weight(subject: Subject) -> Iterator[Finding]:
    least = max(_LARGE_BYTES, subject.package.weight_bytes // 10)
    for weight in _weights(subject).values():
        is_large = weight.type.dtype.name == "fp32" and len(weight.stored) >= least
        if is_large and weight.view.mostly_half:
            size = _megabytes(len(weight.stored))
            yield Finding(f"{weight.type}, {size}", weight.view.name, weight.name)


def _compressed(subject: Subject) -> list[int]:
    """Return the number of elements of each compressed weight."""
    return [
        type_.elements
        for view in subject.views
        for operation in view.operations
        if operation.type.startswith("constexpr_")
        for type_ in operation.outputs.values()
        if isinstance(type_, TensorType)
    ]


def _plain(
    subject: Subject, parameters: dict[str, tuple[str, ...]]
) -> Iterator[tuple[Weight, str]]:
    """Yield the float weights that operations use as they are, each once, with one of the uses.

    Only those are meant that are no smaller than half of what is usual among the compressed ones.
    """
    compressed = _compressed(subject)
    weights, seen = _weights(subject), set[int]()
    for view in subject.views:
        for operation in view.of(*parameters):
            for parameter in parameters[operation.type]:
                value = view.value(view.argument(operation, parameter))
                place = value.stored.ctypes.data if value and value.stored is not None else 0
                weight = weights.get(place)
                if weight is None or place in seen or not compressed:
                    continue
                seen.add(place)
                large = weight.type.elements >= max(median(compressed) / 2, 1)
                if large and weight.type.dtype.is_float:
                    yield weight, operation.type


@rule(
    "weight-left-uncompressed",
    "warning",
    "A matrix is not compressed though others are",
    why="coremltools skips what its blocks do not divide, or what is tied, with one line in a log "
    "(coremltools#2777).",
    fix="Choose a block size that divides it, or name it in the compression's configuration.",
)
def weight_left_uncompressed(subject: Subject) -> Iterator[Finding]:
    for weight, use in _plain(subject, _MATRIX):
        message = f"{weight.type}, {_megabytes(len(weight.stored))}, of a {use}"
        yield Finding(message, weight.view.name, weight.name)


@rule(
    "embedding-left-uncompressed",
    "note",
    "A table is not compressed though matrices are",
    why="Often meant: compressed embeddings gave wrong numbers on iOS 26 (executorch#15936). Often "
    "the largest part of a small model, too.",
    fix="Compress it to 8 bits, if the package still agrees with its model.",
)
def embedding_left_uncompressed(subject: Subject) -> Iterator[Finding]:
    for weight, _ in _plain(subject, {"gather": ("x",)}):
        size = _megabytes(len(weight.stored))
        yield Finding(f"{weight.type}, {size}", weight.view.name, weight.name)


def _scales(view: View, operation: Operation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of data and scale; () where they are not known."""
    shapes = [view.shape(view.argument(operation, p)) for p in ("data", "scale")]
    data, scale = (tuple(d for d in shape if d is not None) for shape in shapes)
    return data, scale


def _is_per_block(view: View, operation: Operation) -> bool:
    """Whether there is more than one scale within a row."""
    data, scale = _scales(view, operation)
    return len(data) == len(scale) and sum(s > 1 for s in scale) > 1


@rule(
    "per-block-integers",
    "note",
    "Integer weights with a scale for each block",
    why="Silently wrong on the Neural Engine: cosine 0.37 where the GPU has 0.999 "
    "(coreai-models#279); int4 blocks were seen to crash there or to be left to the CPU.",
    fix="Run it on CPU and GPU, or use palettes for the Neural Engine.",
    neural_engine=True,
)
def per_block_integers(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        found = [o for o in view.of("constexpr_blockwise_shift_scale") if _is_per_block(view, o)]
        if found:
            yield Finding(f"{len(found)} weights", view.name, found[0].name)


@rule(
    "palette-then-scale",
    "note",
    "A palette that is scaled afterwards",
    why="With a scale for each block the Neural Engine refuses it (error -14, CoreML-LLM); with "
    "one a channel it crashes on macOS 26: 'mps.dequantize' (coremltools#2688). Whether a GPU "
    "takes it is not known here.",
    fix="Leave the scale out: a palette a group of channels does as well.",
    neural_engine=True,
)
def palette_then_scale(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        found = [
            o
            for o in view.of("constexpr_blockwise_shift_scale")
            if view.made_by(view.argument(o, "data"), "constexpr_lut_to_dense")
        ]
        yield from _counted(view, found)


@rule(
    "four-bit-palette",
    "note",
    "Palettes of 16 values",
    why="Models that coremltools 9.0 palettised to 4 bits were wrong on CPU and Neural Engine of "
    "macOS 26, and crashed after some hundred calls (coremltools#2716); why is open.",
    fix="Compare the package with its model on the device.",
)
def four_bit_palette(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        found = [
            o
            for o in view.of("constexpr_lut_to_dense")
            if view.dtype(view.argument(o, "indices")) == "uint4"
        ]
        yield from _counted(view, found)


@rule(
    "float-offset",
    "note",
    "Integer weights with an offset that is no integer",
    why="coremltools allows it and it carries MLX's quantisation over exactly; no device was seen "
    "to load it here.",
    fix="Load the package on each kind of device before it is shipped.",
)
def float_offset(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        found = [
            o
            for o in view.of("constexpr_blockwise_shift_scale")
            if view.dtype(view.argument(o, "offset")).startswith("fp")
        ]
        yield from _counted(view, found)


def _counted(view: View, found: list[Operation]) -> Iterator[Finding]:
    """One finding for all of them, at the first."""
    if found:
        yield Finding(f"{len(found)} weights", view.name, found[0].name)
