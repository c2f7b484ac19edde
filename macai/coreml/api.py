"""Any MLX function of arrays to a Core ML package: what `macai.coreml` offers by itself."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.coreml.description import Metadata
from macai.coreml.graph import Graph, Pass, apply
from macai.coreml.lower import Settings, lower
from macai.coreml.package import package_bytes, save_package, target
from macai.coreml.passes import PASSES
from macai.coreml.passes.float32 import keep_float32
from macai.coreml.trace import trace
from macai.errors import UsageError

Arrays = Mapping[str, mx.array]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFunction:
    """One function of a package.

    Attributes:
        fn: Takes the arrays of `inputs`, then those of `states`, by position; returns the arrays
            called `outputs`, then the new value of each state.
        inputs: An example array for each input; only its shape and type matter.
        outputs: A name for each output.
        states: An example array for each state: what the package keeps between calls, float16.
        weights: The module that `fn` runs: its parameters become weights by their names, stored
            once for all functions of the package that name them alike.
        named: What a weight is called in the package, by its path in `weights`: its path if not
            given. Functions share what is called alike, so alike must be equal.
        settings: Precision and forms.
        passes: What rewrites its graph before it is lowered.
    """

    fn: Callable[..., mx.array | Sequence[mx.array]]
    inputs: Arrays
    outputs: Sequence[str] = ("output",)
    states: Arrays = field(default_factory=dict)
    weights: nn.Module | None = None
    named: Callable[[str], str] | None = None
    settings: Settings = field(default_factory=Settings)
    passes: Sequence[Pass] = PASSES


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: The package.
        operations: Number of MIL operations by function.
        bytes: Its size on disk.
    """

    path: Path
    operations: dict[str, int]
    bytes: int


def export(
    fn: Callable[..., mx.array | Sequence[mx.array]],
    inputs: Arrays,
    path: str | Path,
    *,
    outputs: Sequence[str] = ("output",),
    states: Arrays | None = None,
    functions: Mapping[str, Arrays] | None = None,
    weights: nn.Module | None = None,
    target: str = "iOS18",
    precision: str = "fp16",
    metadata: Metadata | None = None,
    force: bool = False,
) -> Exported:
    """Write an MLX function as a Core ML package.

    Example:
        >>> model = nn.Linear(8, 4)
        >>> export(model, {"x": mx.zeros((1, 8))}, "linear.mlpackage", weights=model)

    Args:
        fn: Takes the arrays of `inputs`, then those of `states`; returns the arrays called
            `outputs`, then the new states. A module is such a function.
        inputs: An example array by input name; its shape and type become the input's. Core ML has
            no booleans and no arrays of rank 0 there: they are int32, and [1].
        path: Where the package goes, *.mlpackage.
        outputs: The names of the outputs.
        states: An example array for each state, in the order in which `fn` takes and returns
            them. A state is float16 on the device and keeps its value from call to call.
        functions: Names and inputs of the functions of a package with several: the same `fn` for
            other shapes, weights and states shared. Without it there is one, "main", for `inputs`.
        weights: The module whose parameters keep their names; `fn` itself if it is a module.
        target: The oldest system it has to run on: "iOS16", "iOS17" or "iOS18" (macOS 15; states
            and several functions need it).
        precision: "fp16", or "fp32" throughout.
        metadata: What the package says of itself.
        force: Replace what is at `path`.

    Raises:
        UnsupportedOpError: MLX primitives that have no lowering, all of them named.
        ExportError: the function cannot be traced or lowered.
        OutputError: `path` exists or cannot be written.
    """
    if precision not in ("fp16", "fp32"):
        raise UsageError(f"unknown precision '{precision}'", hint="fp16 or fp32")
    if weights is None and isinstance(fn, nn.Module):
        weights = fn
    settings = Settings(precision=precision, fused_attention=target == "iOS18")
    made = {
        name: ExportFunction(
            fn=fn,
            inputs=arrays,
            outputs=outputs,
            states=states or {},
            weights=weights,
            settings=settings,
        )
        for name, arrays in (functions or {"main": inputs}).items()
    }
    return export_functions(made, path, target=target, metadata=metadata, force=force)


def export_functions(
    functions: Mapping[str, ExportFunction],
    path: str | Path,
    *,
    target: str = "iOS18",
    default: str | None = None,
    metadata: Metadata | None = None,
    force: bool = False,
) -> Exported:
    """Write several MLX functions as one package: see `export`.

    `default` is the function that runs where none is named; the first if not given.
    """
    opset = _target(target)
    if not functions:
        raise UsageError("a package needs a function")
    stateful = any(f.states for f in functions.values())
    if target != "iOS18" and (stateful or list(functions) != ["main"]):
        raise UsageError(
            f"states, and functions not called main, need iOS18, not {target}",
            hint="leave out the target",
        )
    path = Path(path)
    with uncollected():
        lowered = {name: _lowered(name, f, opset) for name, f in functions.items()}
        operations = {name: _operations(function) for name, function in lowered.items()}
        save_package(
            lowered,
            path,
            opset=opset,
            default=default or next(iter(functions)),
            metadata=metadata or Metadata(),
            force=force,
        )
    return Exported(path=path, operations=operations, bytes=package_bytes(path))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Let Python look for no cycles meanwhile.

    A program is hundreds of thousands of objects, none of them garbage, and it would look through
    all of them again and again: an eighth of the time of an export.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def graph_of(function: ExportFunction) -> Graph:
    """Return the graph of a function as it is lowered: traced, and rewritten by all passes."""
    arrays = [*function.inputs.values(), *function.states.values()]
    graph = trace(function.fn, arrays, function.weights)
    if function.named is not None:
        graph.weights = {value: function.named(path) for value, path in graph.weights.items()}
    return apply(graph, function.passes)


def _lowered(name: str, function: ExportFunction, opset: Any) -> Any:
    graph = graph_of(function)
    _check_results(name, function, graph)
    first = len(function.inputs)
    return lower(
        graph,
        function.settings,
        inputs=list(function.inputs),
        outputs=function.outputs,
        states={label: first + n for n, label in enumerate(function.states)},
        keep32=keep_float32(graph),
        opset=opset,
    )


def _check_results(name: str, function: ExportFunction, graph: Graph) -> None:
    expected = len(function.outputs) + len(function.states)
    if len(graph.outputs) != expected:
        raise UsageError(
            f"{name}: the function returns {len(graph.outputs)} arrays, its outputs and states are "
            f"{expected}",
            hint="name each output, and return each state after them",
        )
    for label, state, final in zip(
        function.states,
        graph.inputs[len(function.inputs) :],
        graph.outputs[len(function.outputs) :],
        strict=True,
    ):
        if state.shape != final.shape:
            raise UsageError(
                f"{name}: state {label} is {list(state.shape)}, its new value {list(final.shape)}"
            )


def _operations(function: Any) -> int:
    return sum(op.op_type != "const" for op in function.operations)


_target = target
