import itertools
from math import prod

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macai.coreml.graph import Graph, Node, Value
from macai.coreml.passes.low_rank import low_rank, merged_axes
from macai.errors import UnsupportedOpError
from tests.coreml.same import assert_same, lowered_graph, ops_of, save


def computed(graph: Graph, x: np.ndarray) -> np.ndarray:
    """What a graph of shapes and turns computes, in numpy."""
    values = {graph.inputs[0].name: x}
    for node in graph.nodes:
        assert node.op == "Reshape" or max(len(v.shape) for v in node.outputs) <= 5
        a = values[node.inputs[0].name]
        if node.op == "Reshape":
            a = a.reshape(node.outputs[0].shape)
        elif node.op == "Transpose":
            a = a.transpose(node.arguments[0])
        else:
            a = np.broadcast_to(a, node.outputs[0].shape)
        assert a.shape == node.outputs[0].shape
        values[node.outputs[0].name] = a
    return values[graph.outputs[0].name]


def graph_of(op: str, before: tuple, after: tuple, argument: object) -> Graph:
    x, y = Value("x", before, "float32"), Value("y", after, "float32")
    return Graph([x], [y], {}, {}, [Node(op, (x,), (y,), (argument,))])


@given(st.permutations(range(6)), st.lists(st.integers(1, 3), min_size=6, max_size=6))
def test_any_turn_of_six_dimensions_is_one_of_at_most_five(perm, sizes):
    shape = tuple(sizes)
    x = np.arange(prod(shape)).reshape(shape)
    graph = graph_of("Transpose", shape, tuple(shape[a] for a in perm), perm)
    low_rank(graph)
    np.testing.assert_array_equal(computed(graph, x), x.transpose(perm))


@settings(max_examples=50)
@given(st.permutations(range(8)))
def test_any_turn_of_eight_dimensions_is_several(perm):
    shape = (2, 2, 1, 3, 2, 1, 2, 2)
    x = np.arange(prod(shape)).reshape(shape)
    graph = graph_of("Transpose", shape, tuple(shape[a] for a in perm), perm)
    low_rank(graph)
    np.testing.assert_array_equal(computed(graph, x), x.transpose(perm))


def test_neighbours_that_stay_neighbours_are_one_axis():
    assert merged_axes((2, 3, 4), (1, 2, 0)) == ((2, 12), (1, 0))
    assert merged_axes((2, 1, 4), (2, 1, 0)) == ((2, 4), (1, 0))
    assert merged_axes((2, 3, 4), (0, 1, 2)) == ((24,), (0,))
    assert merged_axes((2, 3, 4), (2, 1, 0)) == ((2, 3, 4), (2, 1, 0))


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=6, max_size=7))
def test_a_broadcast_of_many_dimensions_is_one_of_few(axes):
    after = tuple(size for size, _ in axes)
    before = tuple(1 if spread else size for size, spread in axes)
    x = np.arange(prod(before)).reshape(before)
    graph = graph_of("Broadcast", before, after, after)
    pairs = zip(before, after, strict=True)
    kept = list(itertools.groupby([a == b for a, b in pairs if b > 1]))
    low_rank(graph)
    if len(kept) > 5:
        assert ops_of(graph) == ["Broadcast"]
    else:
        np.testing.assert_array_equal(computed(graph, x), np.broadcast_to(x, after))


def test_repeats_and_tiles_have_no_value_of_rank_six():
    for fn in (lambda x: mx.repeat(x, 2, axis=2), lambda x: mx.tile(x, (1, 2, 1, 3, 1))):
        graph = lowered_graph(fn, mx.ones((1, 3, 2, 4, 2)))
        assert max(len(v.shape) for n in graph.nodes for v in (*n.inputs, *n.outputs)) <= 5


def test_small_ranks_are_left_alone():
    graph = lowered_graph(lambda x: x.transpose(0, 2, 1, 3), mx.ones((1, 2, 3, 4)))
    assert ops_of(graph) == ["Transpose"]


def test_indices_on_axes_leave_no_axes_of_one(tmp_path):
    x, n = mx.random.normal((2, 6, 3)), mx.array([[1, 2], [0, 5]])
    fn = lambda x, n: x[:, n]  # noqa: E731
    assert "Squeeze" not in ops_of(lowered_graph(fn, x, n))
    assert_same(fn, x, n, path=tmp_path / "p.mlpackage")


def test_a_result_of_rank_six_cannot_be_exported(tmp_path):
    fn = lambda x: x.reshape(1, 2, 1, 3, 1, 1) + 1  # noqa: E731
    with pytest.raises(UnsupportedOpError, match="Reshape: rank 6, and Core ML has at most 5"):
        save(fn, [mx.ones((2, 3))], tmp_path / "p.mlpackage")
