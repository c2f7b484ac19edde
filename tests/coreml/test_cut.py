"""A graph in parts: run one after the other they compute what it does."""

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.coreml.api import ExportFunction, graph_of
from macai.coreml.cut import HIDDEN_IN, HIDDEN_OUT, cut
from macai.errors import ExportError
from tests.coreml.same import ops_of


class Blocks(nn.Module):
    """Three residual blocks that each remember a row of theirs, and mask by position."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.layers = [nn.Linear(8, 8) for _ in range(3)]
        self.head = nn.Linear(8, 16)

    def __call__(self, ids, position, *states):
        x = self.embed(ids)
        mask = (mx.arange(4) <= position).astype(mx.float32)[None, :, None]
        kept = []
        for layer, state in zip(self.layers, states, strict=False):
            y = layer(x)
            state = mx.slice_update(state, y[:, :1], position, axes=(1,))
            x = x + y + (state * mask).sum(axis=1, keepdims=True)
            kept.append(state)
        return self.head(x), *kept


def traced(count, model=None):
    model = model or Blocks()
    return graph_of(
        ExportFunction(
            fn=model,
            inputs={"ids": mx.zeros((1, 2), mx.int32), "position": mx.zeros((1,), mx.int32)},
            states={f"s{n}": mx.zeros((1, 4, 8)) for n in range(count)},
            weights=model,
        )
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_part_has_one_state_and_hands_on_one_value(count):
    parts = cut(traced(count), ["ids", "position"], ["out"], recomputed=["position"])
    names = [(p.inputs, p.outputs) for p in parts]
    first, last = ("ids", "position"), (HIDDEN_IN, "position")
    assert [i for i, _ in names] == [first, *[last] * (count - 1)]
    assert [o for _, o in names] == [*[(HIDDEN_OUT,)] * (count - 1), ("out",)]
    for part in parts:
        assert part.graph.inputs[-1].shape == part.graph.outputs[-1].shape == (1, 4, 8)
    for before, after in pairwise(parts):
        assert before.graph.outputs[0] == after.graph.inputs[0]


def test_nothing_is_lost_and_what_is_small_is_computed_again():
    whole = traced(3)
    parts = cut(whole, ["ids", "position"], ["out"], recomputed=["position"])
    ops = [ops_of(part.graph) for part in parts]
    for op in ("Linear", "Take", "DynamicSliceUpdate"):
        assert sum(o.count(op) for o in ops) == ops_of(whole).count(op)
    assert [o.count("LessEqual") for o in ops] == [1, 1, 1]
    assert [len(part.graph.weights) for part in parts] == [3, 2, 4]


class Skipping(Blocks):
    """Its last block reads what its first one had."""

    def __call__(self, ids, position, *states):
        x = self.embed(ids)
        kept = []
        for layer, state in zip(self.layers, states, strict=False):
            y = layer(x)
            state = mx.slice_update(state, y[:, :1], position, axes=(1,))
            x = x * y + state.sum(axis=1, keepdims=True)
            kept.append(state)
        return self.head(x + self.embed(ids)), *kept


def test_what_hands_on_more_than_one_value_is_not_divided():
    with pytest.raises(ExportError, match="cannot be divided after part 1 of 2"):
        cut(traced(2, Skipping()), ["ids", "position"], ["out"], recomputed=["position"])
