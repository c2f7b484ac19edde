"""Compare an MLX function with the package it becomes, as macai.mil runs it."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml import ExportFunction, export
from macai.coreml.api import graph_of
from macai.coreml.graph import Graph
from macai.coreml.trace import trace
from macai.mil import Package, open_package

# Largest error over the largest value, by the package's precision and that of the run.
TOLERANCE = {("fp32", "fp32"): 1e-5, ("fp16", "fp32"): 4e-3, ("fp16", "fp16"): 1e-2}


def results_of(fn: Callable, inputs: Sequence[mx.array]) -> list[mx.array]:
    """Return what `fn` returns as a list."""
    result = fn(*inputs)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def together(
    cases: Sequence[tuple[Callable, tuple[mx.array, ...]]],
) -> tuple[Callable, list[mx.array]]:
    """One function of all cases' inputs that returns all their results: one export, not many."""
    sizes = [len(inputs) for _, inputs in cases]

    def fn(*arrays):
        given = iter(arrays)
        own = [list(itertools.islice(given, size)) for size in sizes]
        pairs = zip(cases, own, strict=True)
        return [r for (case, _), inputs in pairs for r in results_of(case, inputs)]

    return fn, [a for _, inputs in cases for a in inputs]


def save(
    fn: Callable, inputs: Sequence[mx.array], path: Path, *, count: int = 1, **options: Any
) -> Package:
    """Export `fn` with inputs x0, x1, ... and outputs y0, y1, ..., and open the package."""
    named = {f"x{n}": array for n, array in enumerate(inputs)}
    export(fn, named, path, outputs=[f"y{n}" for n in range(count)], force=True, **options)
    return open_package(path)


def as_numpy(array: mx.array) -> np.ndarray:
    """Return an MLX array as a package takes and gives it: no bool, nothing of rank 0."""
    if array.dtype == mx.bfloat16:
        array = array.astype(mx.float32)
    plain = np.array(array)
    plain = plain if plain.dtype.kind == "f" else plain.astype(np.int64)
    return plain if plain.ndim else plain.reshape(1)


def run(package: Package, *inputs: mx.array, precision: str = "fp32") -> list[np.ndarray]:
    """Run the function "main" of a package on x0, x1, ..."""
    arrays = {f"x{n}": as_numpy(array) for n, array in enumerate(inputs)}
    return list(package.functions["main"].run(arrays, precision=precision).outputs.values())


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest error over the largest value; inf for another shape or infinity."""
    if got.shape != wanted.shape:
        return np.inf
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(got, wanted) else np.inf
    if not np.isfinite(wanted).all():
        return 0.0 if np.array_equal(got, wanted, equal_nan=True) else np.inf
    error = np.abs(got.astype(np.float64) - wanted).max(initial=0)
    return float(error / max(np.abs(wanted).max(initial=0), 1e-30))


def assert_same(
    fn: Callable,
    *inputs: mx.array,
    path: Path,
    precisions: Sequence[str] = ("fp32",),
    tolerance: float | None = None,
    **options: Any,
) -> None:
    """Assert that a package of each precision computes what MLX does.

    A package in fp16 is run twice: in float32, so that only its constants and wrong lowerings show,
    and rounded after each operation.
    """
    wanted = [as_numpy(a) for a in results_of(fn, inputs)]
    for written in precisions:
        package = save(fn, inputs, path, count=len(wanted), precision=written, **options)
        for read in dict.fromkeys(("fp32", written)):
            got = run(package, *inputs, precision=read)
            errors = [relative_error(g, w) for g, w in zip(got, wanted, strict=True)]
            limit = tolerance or TOLERANCE[written, read]
            assert max(errors, default=0) <= limit, (written, read, errors)


def lowered_graph(fn: Callable, *inputs: mx.array, weights: nn.Module | None = None) -> Graph:
    """Return the graph of a function after all passes."""
    if weights is None and isinstance(fn, nn.Module):
        weights = fn
    named = {f"x{n}": array for n, array in enumerate(inputs)}
    return graph_of(ExportFunction(fn=fn, inputs=named, weights=weights))


def traced_graph(fn: Callable, *inputs: mx.array, weights: nn.Module | None = None) -> Graph:
    """Return the graph of a function before any pass."""
    if weights is None and isinstance(fn, nn.Module):
        weights = fn
    return trace(fn, inputs, weights)


def ops_of(graph: Graph) -> list[str]:
    """Return the ops of a graph in order."""
    return [node.op for node in graph.nodes]
