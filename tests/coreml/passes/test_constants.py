import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.coreml.passes.constants import COMPUTE, fold_constants
from tests.coreml.cases import CASES
from tests.coreml.same import (
    as_numpy,
    assert_same,
    lowered_graph,
    ops_of,
    relative_error,
    traced_graph,
)


def test_what_needs_no_input_is_computed(tmp_path):
    def fn(x):
        mask = mx.arange(4)[:, None] >= mx.arange(4)[None]
        return x + mx.where(mask, 0.0, -2.0) * mx.sin(mx.linspace(0, 1, 4))

    x = mx.ones((4, 4))
    assert ops_of(lowered_graph(fn, x)) == ["Add"]
    assert_same(fn, x, path=tmp_path / "p.mlpackage")


def test_what_needs_an_input_stays():
    assert ops_of(lowered_graph(lambda x: mx.sin(x) + 1, mx.ones(3))) == ["Sin", "Broadcast", "Add"]


@pytest.mark.parametrize("op", sorted(COMPUTE.keys() & CASES.keys()))
def test_folding_gives_what_mlx_gives(op):
    """The cases of the op table, with their inputs as constants."""
    for fn, inputs in CASES[op]:
        graph = traced_graph(lambda fn=fn, inputs=inputs: fn(*(mx.array(a) for a in inputs)))
        fold_constants(graph)
        wanted = fn(*inputs)
        wanted = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
        for value, result in zip(graph.outputs, wanted, strict=True):
            if value.name in graph.constants:
                got = graph.constants[value.name]
                assert (got.shape, got.dtype) == (result.shape, result.dtype)
                assert relative_error(as_numpy(got), as_numpy(result)) <= 1e-6


def test_a_weight_of_another_shape_keeps_its_name():
    layer = nn.Linear(4, 6)
    graph = lowered_graph(lambda x: x * layer.weight.reshape(4, 6), mx.ones(6), weights=layer)
    assert list(graph.weights.values()) == ["weight.4x6"]


def test_a_transposed_weight_is_left_to_linear():
    layer = nn.Linear(4, 6, bias=False)
    graph = lowered_graph(lambda x: x @ layer.weight.T, mx.ones((2, 4)), weights=layer)
    assert ops_of(graph) == ["Linear"]
    assert list(graph.weights.values()) == ["weight"]


def test_a_large_weight_is_not_computed_with_but_a_small_one_is():
    layer = nn.Linear(1024, 512)
    graph = lowered_graph(lambda x: x * (layer.weight + 1), mx.ones(1024), weights=layer)
    assert "Add" in ops_of(graph)
    graph = lowered_graph(lambda x: x * (layer.bias + 1), mx.ones(512), weights=layer)
    assert "Add" not in ops_of(graph)


def test_negative_strides_to_the_first_are_folded():
    fn = lambda x: x + mx.arange(5).astype(mx.float32)[::-2]  # noqa: E731
    graph = lowered_graph(fn, mx.zeros(3))
    assert ops_of(graph) == ["Add"]
    assert [c.tolist() for c in graph.constants.values()] == [[4, 2, 0]]
