"""How large a package's values become: measured on text, and what to do where float16 ends.

float16 ends at 65,504. On calibration text each value that is declared fp16 is measured, in a run
in float32, and what comes within a factor of two of the end is kept in float32: see islands.py. A
text is not all texts, and a device may add up in another order, so there is a factor.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macai.coreml.islands import LARGEST
from macai.coreml.manifest import Manifest
from macai.coreml.session import ReferenceRunner, Session
from macai.mil import Function, Package

LIMIT = LARGEST / 2
_ENDS = ("_weight", "_bias", "_scales")
TOKENS = 128  # of the text, taken at once
SINGLY = 4  # of its first, one by one: what a first token makes of itself is the largest often


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a program a value is: for functions that do the same in different shapes.

    Attributes:
        weight: Number of the weight that was used last, in the order of the first function.
        type: The operation's.
        count: How many of that type came between.
    """

    weight: int
    type: str
    count: int


@dataclass(frozen=True, slots=True)
class Peaks:
    """The largest magnitudes of a package's values.

    Attributes:
        tokens: How many were looked at.
        values: By function and name of the value.
        wide: Those beyond LIMIT in any function, by function and name.
        weights: By the name of the weight they come after; "" before any.
    """

    tokens: int
    values: dict[str, dict[str, float]]
    wide: dict[str, frozenset[str]]
    weights: dict[str, float]

    @property
    def largest(self) -> tuple[str, float]:
        """The name of a weight, and what comes after it."""
        return max(self.weights.items(), key=lambda item: item[1], default=("", 0.0))

    @property
    def layers(self) -> dict[str, float]:
        """By layer: what the names of its weights begin with, up to the number."""
        found: dict[str, float] = {}
        for name, peak in self.weights.items():
            if layer := re.match(r"\D*\d+", name):
                found[layer[0]] = max(found.get(layer[0], 0.0), peak)
        return found


def measure_peaks(manifest: Manifest, package: Package, ids: Sequence[int]) -> Peaks:
    """Run each function on the beginning of a text.

    Args:
        manifest: The bundle's.
        package: Its package.
        ids: The text.
    """
    found: dict[str, dict[str, float]] = {}
    tokens = 0
    for adapter in (None, *(a["name"] for a in manifest.adapters)):
        runner = ReferenceRunner(package, peaks=found)
        session = Session(manifest, runner, adapter)
        text = list(ids)[: min(TOKENS, session.room)]
        tokens = len(text)
        for name in manifest.prefills:
            session.reset()
            _run(session, name, text)
        session.reset()
        for token in text[:SINGLY]:
            session.feed([token])
    return _gathered(package, found, tokens)


def _run(session: Session, name: str, text: list[int]) -> None:
    """Give one function all of a text, but for a rest that does not fill it."""
    rows = session.manifest.functions[name].tokens
    for begin in range(0, max(len(text) - rows, 0) + 1, rows):
        session.run(name, text[begin : begin + rows])


def _gathered(package: Package, found: dict[str, dict[str, float]], tokens: int) -> Peaks:
    names: dict[int, tuple[int, str]] = {}  # by address: the weight's number and name
    for function in (package.functions[package.default_function], *package.functions.values()):
        near = ""  # compressed weights have no names: they are called like the norm before
        for address, name in _weights(function):
            near = name or near
            names.setdefault(address, (len(names), near))
    places = {name: _places(package.functions[name], names) for name in found}
    highest: dict[Place, float] = {}
    for name, peaks in found.items():
        for value, place in places[name].items():
            highest[place] = max(highest.get(place, 0.0), peaks.get(value, 0.0))
    called = dict(names.values())
    weights: dict[str, float] = {}
    for place, peak in highest.items():
        near = called.get(place.weight, "")
        weights[near] = max(weights.get(near, 0.0), peak)
    wide = {
        name: frozenset(v for v, p in places[name].items() if highest[p] > LIMIT) for name in found
    }
    return Peaks(tokens, found, wide, weights)


def _weights(function: Function) -> Iterator[tuple[int, str]]:
    """Yield address and name of the weights of a function, as they come; "" of what has none."""
    for operation in function.operations:
        address = operation.stored_at
        if address is not None:
            name = next(iter(operation.outputs))
            yield address, name if operation.type == "const" and name.endswith(_ENDS) else ""


def _places(function: Function, names: Mapping[int, tuple[int, str]]) -> dict[str, Place]:
    """Return where each value of a function is that weights or states have a part in.

    Others are made of positions: the numbers that a mask has in them are no activations.
    """
    numbers: dict[str, int] = {}
    counts: dict[str, int] = {}
    places: dict[str, Place] = {}
    last = -1
    for operation in function.operations:
        address = operation.stored_at
        if address is not None:
            numbers |= dict.fromkeys(operation.outputs, names[address][0])
            continue
        if operation.type == "const":
            continue
        read = [a for args in operation.input_names.values() for a in args]
        if used := [numbers[a] for a in read if a in numbers]:
            last, counts = used[-1], {}
        counts[operation.type] = counts.get(operation.type, -1) + 1
        place = Place(last, operation.type, counts[operation.type])
        if used or operation.type == "read_state" or any(a in places for a in read):
            places |= {n: place for n, type_ in operation.outputs.items() if _is_float(type_)}
    return places


def _is_float(type_: Any) -> bool:
    return getattr(type_, "dtype", None) is not None and type_.dtype.name in ("fp16", "fp32")
