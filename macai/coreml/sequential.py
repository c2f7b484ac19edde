"""A model rounded block by block: each matrix for the inputs that those before it leave to it.

Two streams of hidden states go through the model, of the blocks as they were and of those that are
rounded: a matrix is rounded to give of the second what it gave of the first. See gptq.py.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.calibrate import input_moments
from macai.coreml.compress import Compression
from macai.coreml.gptq import Inputs
from macai.coreml.gradients import Gradients
from macai.coreml.matrices import PLACES, matrix_paths
from macai.coreml.watch import watching

Progress = Callable[[int, int], None]
Seen = dict[str, mx.array]


def round_model(
    model: nn.Module,
    batches: Sequence[mx.array],
    gradients: Mapping[str, Gradients],
    compression: Compression,
    progress: Progress = lambda done, total: None,
) -> None:
    """Give a model's matrices the weights that its package has, in place.

    What is in no block (tables, the head) is rounded for its inputs in the model as it was; so is
    all of a model whose blocks are no chain, each with the result of the one before alone.

    Args:
        model: int32 [B, L] -> logits.
        batches: Text, int32 [B, L] each.
        gradients: Of the same text, by path: how much errors at each token count.
        compression: How; it keeps what is stored.
        progress: Told how many blocks are done, and of how many.
    """
    modules = matrix_paths(model)
    blocks = _chain(model, batches[0])
    within = {id(m) for block in blocks for m in matrix_paths(block).values()}
    outside = {path: m for path, m in modules.items() if id(m) not in within}
    before = [_calls(model, blocks, batch) for batch in batches]
    moments = input_moments(model, batches, gradients, outside)
    for path, module in outside.items():
        known = moments.pop(path, None)
        _round(path, module, None if known is None else Inputs(known), compression)
    after = [_calls(model, blocks, batch) for batch in batches]
    paths = {id(module): path for path, module in modules.items()}
    for number, block in enumerate(blocks):
        own = [[calls.pop(0) for calls in stream] for stream in (before, after)]
        results = _round_block(block, own[0], own[1], paths, gradients, compression)
        for stream, outputs in zip((before, after), results, strict=True):
            for calls, output in zip(stream, outputs, strict=True):
                if calls:
                    calls[0].x = output
        progress(number + 1, len(blocks))


@dataclass(slots=True)
class _Call:
    """What a block is called with, and gave."""

    x: mx.array
    rest: tuple[Any, ...]
    named: Mapping[str, Any]

    def run(self, block: nn.Module) -> mx.array:
        return block(self.x, *self.rest, **self.named)


def _round_block(
    block: nn.Module,
    before: Sequence[_Call],
    after: Sequence[_Call],
    paths: Mapping[int, str],
    gradients: Mapping[str, Gradients],
    compression: Compression,
) -> tuple[list[mx.array], list[mx.array]]:
    """Round the matrices of a block in the order of their use; return both streams' results."""
    modules = {paths[id(m)]: m for m in matrix_paths(block).values()}
    inputs, outputs = [], []
    for call in before:
        with _inputs(paths) as seen:
            output = call.run(block)
        mx.eval(output, seen)
        inputs.append(seen)
        outputs.append(output)
    for group in _alike(inputs[0]):
        given = []
        for call in after:
            with _inputs(paths) as seen:
                call.run(block)
            given.append(seen[group[0]])
            mx.eval(given)  # and no more of the block than leads to it
        for path in group:
            known = [calls.pop(path) for calls in inputs]
            _round(path, modules[path], _moments(gradients[path], given, known), compression)
    results = [call.run(block) for call in after]
    mx.eval(results)
    return outputs, results


def _moments(gradients: Gradients, given: Sequence[mx.array], known: Sequence[mx.array]) -> Inputs:
    """Return what a matrix is given now, and what it was given before."""
    moments = wanted = mx.array(0.0)
    for number, (x, y) in enumerate(zip(given, known, strict=True)):
        moments = moments + gradients.product(number, x, x)
        wanted = wanted + gradients.product(number, y, x)
        mx.eval(moments, wanted)
    return Inputs(np.array(moments), np.array(wanted))


def _round(path: str, module: nn.Module, inputs: Inputs | None, compression: Compression) -> None:
    weight = np.array(module.weight.astype(mx.float16)).astype(np.float32)
    stored = compression(path, weight, inputs)
    module.weight = mx.array(weight if stored is None else stored.dense())
    mx.eval(module.weight)


@contextlib.contextmanager
def _inputs(paths: Mapping[int, str]) -> Iterator[Seen]:
    """Collect what matrices are given, by path: all of it, of those that are used twice."""
    found: Seen = {}

    def seen(module: nn.Module, x: mx.array, _: mx.array) -> None:
        if (path := paths.get(id(module))) is None:
            return
        if path in found:
            width = x.shape[-1]
            x = mx.concatenate([found[path].reshape(-1, width), x.reshape(-1, width)])
        found[path] = x

    with watching(PLACES, seen):
        yield found


def _alike(inputs: Seen) -> list[list[str]]:
    """Return the paths in groups that have the same input, in the order of use."""
    groups: dict[int, list[str]] = {}
    for path, x in inputs.items():
        groups.setdefault(id(x), []).append(path)
    return list(groups.values())


def _chain(model: nn.Module, batch: mx.array) -> list[nn.Module]:
    """Return the blocks of a model, or none if they are no chain.

    A chain is what gives the same result block by block: the proof is to do it, on one batch.
    """
    blocks = getattr(model, "layers", None)
    if not isinstance(blocks, list) or not all(isinstance(b, nn.Module) for b in blocks):
        return []
    seen: list[tuple[_Call, Any]] = []
    with _watched(blocks, lambda call, output: seen.append((call, output))):
        model(batch)
    calls, outputs = [call for call, _ in seen], [output for _, output in seen]
    if len(calls) != len(blocks) or not all(isinstance(o, mx.array) for o in outputs):
        return []
    x = calls[0].x
    for block, call in zip(blocks, calls, strict=True):
        call.x = x
        x = call.run(block)
    same = x.shape == outputs[-1].shape and mx.allclose(x, outputs[-1], rtol=1e-4, atol=1e-4)
    return blocks if bool(same) else []


def _calls(model: nn.Module, blocks: Sequence[nn.Module], batch: mx.array) -> list[_Call]:
    """Return how each block is called; of the hidden states the first alone is ever computed."""
    calls: list[_Call] = []
    with _watched(blocks, lambda call, _: calls.append(call)):
        model(batch)
    for call in calls[1:]:
        call.x = calls[0].x
    mx.eval([call.x for call in calls])
    return calls


@contextlib.contextmanager
def _watched(blocks: Sequence[nn.Module], seen: Callable[[_Call, Any], object]) -> Iterator[None]:
    """Tell of each call of a block and its result."""
    owners = {type(block) for block in blocks}
    originals = {owner: owner.__call__ for owner in owners}

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, x: mx.array, *rest: Any, **named: Any) -> Any:
            output = original(self, x, *rest, **named)
            seen(_Call(x, rest, named), output)
            return output

        return call

    try:
        for owner, original in originals.items():
            owner.__call__ = watched(original)  # type: ignore[method-assign]
        yield
    finally:
        for owner, original in originals.items():
            owner.__call__ = original  # type: ignore[method-assign]
