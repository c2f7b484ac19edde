"""Several packages as one: each function is run through all of them, in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from macai.coreml.cut import HIDDEN_IN, HIDDEN_OUT
from macai.errors import PackageError
from macai.mil import Package

State = list[Any]


@dataclass(frozen=True, slots=True)
class ChainResult:
    """What a function gave: the last package's outputs, and the overflows of all of them."""

    outputs: dict[str, np.ndarray]
    overflows: list[Any]


class ChainFunction:
    """One function of each package."""

    def __init__(self, name: str, packages: Sequence[Package]) -> None:
        self._functions = [package.functions[name] for package in packages]
        self.name = name
        self.outputs = self._functions[-1].outputs

    def run(
        self, inputs: Mapping[str, np.ndarray], *, state: State, precision: Any = "fp32"
    ) -> ChainResult:
        """Run it on the state, a part of it for each package; see mil.Function.run."""
        given = dict(inputs)
        overflows: list[Any] = []
        for function, own in zip(self._functions, state, strict=True):
            taken = {name: given[name] for name in function.inputs if name in given}
            result = function.run(taken, state=own, precision=precision)
            overflows += result.overflows
            if HIDDEN_OUT in result.outputs:
                given[HIDDEN_IN] = result.outputs[HIDDEN_OUT]
        return ChainResult(result.outputs, overflows)


class Chain:
    """Packages that go on with what the one before returned."""

    def __init__(self, packages: Sequence[Package]) -> None:
        """Take them in the order they are run in; there is at least one."""
        self._packages = packages

    @cached_property
    def functions(self) -> dict[str, ChainFunction]:
        """Those that all packages have."""
        shared = [
            n for n in self._packages[0].functions if all(n in p.functions for p in self._packages)
        ]
        return {name: ChainFunction(name, self._packages) for name in shared}

    @property
    def size_bytes(self) -> int:
        """On disk, all of them."""
        return sum(package.size_bytes for package in self._packages)

    def make_state(self, function: str | None = None) -> State:
        """Return empty states, a package's each; see mil.Package.make_state."""
        if function is not None and function not in self.functions:
            raise PackageError(f"not every package has a function {function}")
        return [package.make_state(function) for package in self._packages]
