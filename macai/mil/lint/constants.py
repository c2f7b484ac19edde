"""Rules about the values of constants: every float in the package is looked at, once."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import Subject
from macai.mil.lint.view import View
from macai.mil.program import Operation
from macai.mil.types import TensorType
from macai.mil.values import Value

_CHUNK = 1 << 22
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class _Scan:
    """What was seen in a constant: how many values are not finite, the largest of the others."""

    nans: int = 0
    infinities: int = 0
    largest: float = 0.0


def _scan(array: np.ndarray) -> _Scan:
    nans = infinities = 0
    largest = 0.0
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        finite = np.isfinite(part)
        if not finite.all():
            missing = int(np.isnan(part).sum())
            nans += missing
            infinities += part.size - int(finite.sum()) - missing
            part = part[finite]
        if part.size:
            low, high = float(part.min()), float(part.max())
            largest = max(largest, low, high, key=abs)
    return _Scan(nans, infinities, largest)


def _scanned(subject: Subject) -> Iterator[tuple[View, str, Value, _Scan]]:
    """Yield every float constant with what is in it; a shared weight in one function only."""
    seen: set[int] = set()
    for view in subject.views:
        for maker, parameter, value in view.constants():
            if not isinstance(value.type, TensorType) or not value.type.dtype.is_float:
                continue
            if value.stored is not None:
                place = value.stored.ctypes.data
                if place in seen:
                    continue
                seen.add(place)
            name = maker.name if maker.type == "const" else f"{maker.name}.{parameter}"
            if not _is_bound(view, maker, parameter):
                yield view, name, value, _cached(subject, value)


def _cached(subject: Subject, value: Value) -> _Scan:
    key = id(value)
    if key not in subject.scans:
        array = value.read()
        subject.scans[key] = _scan(array) if isinstance(array, np.ndarray) else _Scan()
    scan = subject.scans[key]
    assert isinstance(scan, _Scan)
    return scan


def _is_bound(view: View, maker: Operation, parameter: str) -> bool:
    """Whether a constant only says where clip ends: no value of a run."""
    if maker.type == "clip":
        return parameter in ("alpha", "beta")
    users = view.users.get(view.result(maker), []) if maker.type == "const" else []
    name = view.result(maker)
    return bool(users) and all(
        user.type == "clip" and name not in user.inputs.get("x", ()) for user in users
    )


@rule(
    "nan-constant",
    "error",
    "A constant with values that are not a number",
    why="Whatever uses it is not a number either.",
    fix="Look for the layer whose training or quantisation went wrong, and export again.",
)
def nan_constant(subject: Subject) -> Iterator[Finding]:
    for view, name, value, scan in _scanned(subject):
        if scan.nans:
            yield Finding(f"{scan.nans} of {value.type}", view.name, name)


@rule(
    "infinite-constant",
    "warning",
    "A constant with infinite values",
    why="A row that is masked with -inf throughout gives NaN in softmax, and -inf times 0 does "
    "anywhere; on the Neural Engine masks are finite (ml-ane-transformers uses -1e4, Apple -4e4).",
    fix="Mask with -1e4.",
)
def infinite_constant(subject: Subject) -> Iterator[Finding]:
    for view, name, value, scan in _scanned(subject):
        if scan.infinities:
            yield Finding(f"{scan.infinities} of {value.type}", view.name, name)


@rule(
    "constant-beyond-fp16",
    "warning",
    "A float32 constant beyond what float16 holds, in a function in float16",
    why="The cast pass of ct.convert leaves its operation in float32, off the Neural Engine, or "
    "lets it become -inf: an attention mask of -3.4e38 then gives NaN for rows that are all "
    "masked (coremltools#2669).",
    fix="Clip it: -1e4 masks as well.",
)
def constant_beyond_fp16(subject: Subject) -> Iterator[Finding]:
    for view, name, _, scan in _scanned(subject):
        if view.mostly_half and abs(scan.largest) > _LARGEST:
            yield Finding(f"{scan.largest:.3g}", view.name, name)
