"""An MLX function and example inputs to a graph."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from macai.coreml.graph import Graph, Node, Value
from macai.coreml.marks import composites, marking
from macai.errors import ExportError

Function = Callable[..., mx.array | Sequence[mx.array]]


def trace(fn: Function, inputs: Sequence[mx.array], weights: nn.Module | None = None) -> Graph:
    """Trace `fn(*inputs)`, on the CPU device: only there the same primitives come everywhere.

    Args:
        fn: Takes arrays, returns one or a flat sequence of them. Its shapes are static, so Python
            control flow on them is fine; looking at values is not.
        inputs: Example arrays; only their shapes and types matter.
        weights: A module that `fn` runs: its parameters become named weights of the graph. Other
            arrays that `fn` holds become constants without a name.

    Raises:
        ExportError: `fn` cannot be traced: it evaluates an array, or its result is no flat
            sequence of arrays.
    """
    graph = _traced(fn, inputs, weights)
    if any(node.op == "RandomBits" for node in graph.nodes):
        # An array that `fn` holds may not be evaluated yet: it would be traced as what computes it.
        mx.eval(fn(*inputs))
        graph = _traced(fn, inputs, weights)
    return graph


def _traced(fn: Function, inputs: Sequence[mx.array], weights: nn.Module | None) -> Graph:
    paths: dict[str, mx.array] = {}
    if weights is not None:
        paths = dict(tree_flatten(weights.parameters()))
        mx.eval(_arrays(weights))
    named = {id(array): (path, array) for path, array in reversed(paths.items())}
    names = dict(reversed(named.values()))  # an array that has two paths has its first

    def flat(*arrays: mx.array) -> mx.array | Sequence[mx.array]:
        given = dict(zip(names, arrays, strict=False))
        if weights is not None:
            given = {path: given[named[id(array)][0]] for path, array in paths.items()}
            weights.update(tree_unflatten(list(given.items())))
        return fn(*arrays[len(names) :])

    events: list[dict[str, Any]] = []
    device = mx.default_device()
    try:
        mx.set_default_device(mx.cpu)
        with marking() as marks:
            mx.export_function(events.append, flat, *names.values(), *inputs)
    except (ValueError, RuntimeError) as e:
        raise ExportError(f"the function cannot be traced: {str(e).strip()}", hint=_hint(e)) from e
    finally:
        mx.set_default_device(device)
        if weights is not None and paths:
            weights.update(tree_unflatten(list(paths.items())))
    graph = _graph(events, names)
    composites(graph, marks)
    graph.drop_unused()
    return graph


def _hint(error: Exception) -> str:
    if "Unable to get state" in str(error):
        return "MLX cannot describe that primitive: write what it does with others"
    return "it must take and return arrays, and never evaluate one (.item(), mx.eval)"


def _arrays(module: nn.Module) -> list[mx.array]:
    """Every array in the module, those its parameters() leaves out included (RoPE's _freqs)."""
    found = []
    for part in module.modules():
        own = [v for v in part.values() if not isinstance(v, nn.Module)]
        found += [
            a
            for _, a in cast("list[tuple[str, Any]]", tree_flatten(own))
            if isinstance(a, mx.array)
        ]
    return found


def _graph(events: list[dict[str, Any]], named: dict[str, mx.array]) -> Graph:
    by_type = {e["type"]: e for e in events if e["type"] != "primitive"}
    inputs = [_value(v) for v in by_type["inputs"]["inputs"]]
    weights = {v.name: path for v, path in zip(inputs, named, strict=False)}
    constants = dict(zip(weights, named.values(), strict=True))
    constants.update(by_type["constants"]["constants"])
    near: dict[str, str] = dict(weights)
    nodes = []
    for event in (e for e in events if e["type"] == "primitive"):
        ins = tuple(_value(v) for v in event["inputs"])
        outs = tuple(_value(v) for v in event["outputs"])
        where = next((near[v.name] for v in reversed(ins) if near.get(v.name)), "")
        near |= {v.name: where for v in outs}
        nodes.append(Node(event["name"], ins, outs, tuple(event["arguments"]), where=where))
    outputs = [_value(v) for v in by_type["outputs"]["outputs"]]
    return Graph(inputs[len(named) :], outputs, constants, weights, nodes)


def _value(triple: Any) -> Value:
    name, shape, dtype = triple
    return Value(name, tuple(shape), str(dtype).rpartition(".")[2])
