"""Packages run by macai's own runtime, those in two parts as Apple's package runs them."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from macai.errors import PackageError
from macai.mil import Function, Package, open_package
from macai.mil.function import Result

Precision = Literal["fp32", "fp16"]
Arrays = dict[str, np.ndarray]
# Of decoded weights: the rest are decoded at each use, a tenth of the time of a U-Net's run.
_WEIGHT_CACHE_BYTES = 1 << 28
# Attention scores at 512x512 have 2 x 8 x 4096 x 4096 numbers, 1 GiB, before and after softmax.
_VALUE_LIMIT_BYTES = 4 << 30


class Runner:
    """One component: a package, or parts of which each is given what those before it returned."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._packages: list[Package] = [
            open_package(
                path,
                weight_cache_bytes=_WEIGHT_CACHE_BYTES,
                value_limit_bytes=_VALUE_LIMIT_BYTES,
            )
            for path in paths
        ]

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        precision: Precision = "fp32",
        function: str = "main",
        kept: dict[tuple[int, str], np.ndarray] | None = None,
        stop: threading.Event | None = None,
    ) -> Result:
        """Run it; outputs are the last part's.

        Args:
            inputs: By name.
            precision: See mil.Function.run.
            function: Of each part.
            kept: Filled with values by the part's number and their names, those it has keys of.
            stop: See mil.Function.run.

        Raises:
            PackageError: there is no such function, or it cannot be run on these inputs.
        """
        have, outputs, overflows = dict(inputs), {}, []
        for number, own in enumerate(self.parts(function)):
            given = {name: have[name] for name in own.inputs if name in have}
            names = {name: array for (part, name), array in (kept or {}).items() if part == number}
            result = own.run(given, precision=precision, kept=names, stop=stop)
            if kept is not None:
                kept |= {(number, name): array for name, array in names.items()}
            outputs = result.outputs
            have |= outputs
            overflows += result.overflows
        return Result(outputs, overflows)

    def parts(self, function: str = "main") -> list[Function]:
        """Return a function of each part.

        Raises:
            PackageError: there is no such function.
        """
        for package in self._packages:
            if function not in package.functions:
                raise PackageError(
                    f"{package.path}: no function {function} in it",
                    hint=f"it has {', '.join(package.functions)}",
                )
        return [package.functions[function] for package in self._packages]


def in_batches(
    run: Callable[[Arrays], np.ndarray],
    sample: np.ndarray,
    timestep: float,
    told: Mapping[str, np.ndarray],
    *,
    batch: int,
) -> np.ndarray:
    """Return a U-Net's outputs [rows, 4, h, w] for a sample [1, N, h, w] and each row of `told`."""
    rows = len(told["encoder_hidden_states"])
    given = {
        **told,
        "sample": np.repeat(sample, rows, axis=0),
        "timestep": np.full(rows, timestep, np.float32),
    }
    parts = []
    for begin in range(0, rows, batch):
        part = {name: array[begin : begin + batch] for name, array in given.items()}
        missing = batch - len(part["sample"])  # one row in a U-Net of two
        whole = {n: np.concatenate([a, *[a[-1:]] * missing]) for n, a in part.items()}
        parts.append(run(whole)[: batch - missing])
    return np.concatenate(parts)
