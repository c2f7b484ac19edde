import mlx.core as mx
import mlx.nn as nn

from tests.coreml.cases import Experts
from tests.coreml.same import assert_same, lowered_graph, ops_of


def test_a_layer_becomes_one_op_for_any_number_of_leading_dimensions(tmp_path):
    layer = nn.Linear(4, 6)
    for shape in ((4,), (2, 4), (2, 3, 4), (1, 2, 3, 4)):
        x = mx.random.normal(shape)
        graph = lowered_graph(layer, x)
        assert ops_of(graph) == (["Linear"] if len(shape) > 1 else ops_of(graph))
        assert "Linear" in ops_of(graph)
        assert graph.nodes[0].inputs[0].shape[-1] == 4
        assert_same(layer, x, path=tmp_path / "p.mlpackage")


def test_a_flattened_input_that_is_used_otherwise_stays_flat(tmp_path):
    layer = nn.Linear(4, 6, bias=False)

    def fn(x):
        y = layer(x.reshape(6, 4))
        return y + 1, y.reshape(2, 3, 6)

    assert_same(fn, mx.random.normal((2, 3, 4)), path=tmp_path / "p.mlpackage", weights=layer)
    graph = lowered_graph(lambda x: fn(x)[0] + 0, mx.ones((2, 3, 4)), weights=layer)
    assert "Linear" in ops_of(graph)


def test_a_reshape_that_changes_the_last_dimension_is_no_flattening(tmp_path):
    layer = nn.Linear(4, 6, bias=False)
    fn = lambda x: layer(x.reshape(6, 4)).reshape(3, 12)  # noqa: E731
    x = mx.random.normal((3, 8))
    assert ops_of(lowered_graph(fn, x, weights=layer)) == ["Reshape", "Linear", "Reshape"]
    assert_same(fn, x, path=tmp_path / "p.mlpackage", weights=layer)


def test_scaled_sums_and_computed_weights_stay(tmp_path):
    layer = nn.Linear(4, 6)
    scaled = lambda x: mx.addmm(layer.bias, x, layer.weight.T, alpha=2.0)  # noqa: E731
    assert "Linear" not in ops_of(lowered_graph(scaled, mx.ones((2, 4)), weights=layer))
    computed = lambda x, w: x @ w.T  # noqa: E731
    assert "Linear" not in ops_of(lowered_graph(computed, mx.ones((2, 4)), mx.ones((6, 4))))
    summed = lambda x, b: mx.addmm(b, x, layer.weight.T)  # noqa: E731
    for fn, arrays in (
        (scaled, [(2, 4)]),
        (computed, [(2, 4), (6, 4)]),
        (summed, [(2, 4), (2, 6)]),
    ):
        inputs = [mx.random.normal(shape) for shape in arrays]
        assert_same(fn, *inputs, path=tmp_path / "p.mlpackage", weights=layer)


def test_a_bias_that_is_no_row_stays_a_sum(tmp_path):
    layer = nn.Linear(4, 6, bias=False)
    column = mx.array([[1.0], [2.0], [3.0]])
    fn = lambda x: mx.addmm(column, x, layer.weight.T)  # noqa: E731
    x = mx.random.normal((3, 4))
    assert_same(fn, x, path=tmp_path / "p.mlpackage", weights=layer)


def test_experts_are_read_as_they_are():
    experts = Experts(5, 4, 6)
    graph = lowered_graph(experts, mx.ones((3, 1, 1, 4)), mx.zeros((3, 2), mx.int32))
    assert "GatherLinear" in ops_of(graph)
    assert "Transpose" not in ops_of(graph)
    assert list(graph.weights.values()) == ["weight"]
