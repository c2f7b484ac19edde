import mlx.core as mx

from tests.coreml.same import assert_same, lowered_graph, ops_of

X, Y = mx.random.normal((1, 3, 8)), mx.random.normal((1, 5, 8))


def test_a_product_turns_its_right_side_itself(tmp_path):
    def fn(x, y):
        return x @ y.swapaxes(-1, -2)

    assert ops_of(lowered_graph(fn, X, Y)) == ["Matmul"]
    assert_same(fn, X, Y, path=tmp_path / "p.mlpackage", precisions=("fp32", "fp16"))


def test_a_value_that_something_else_reads_turned_stays(tmp_path):
    def fn(x, y):
        turned = y.swapaxes(-1, -2)
        return x @ turned, turned + 1

    graph = lowered_graph(fn, X, Y)
    assert ops_of(graph).count("Transpose") == 1
    assert [n.options for n in graph.nodes if n.op == "Matmul"] == [{"transpose_y": True}]
    assert_same(fn, X, Y, path=tmp_path / "p.mlpackage")


def test_other_axes_are_moved_before(tmp_path):
    def fn(x, y):
        return x @ y.transpose(2, 1, 0)

    y = mx.random.normal((5, 8, 1))
    graph = lowered_graph(fn, X, y)
    assert [n.options for n in graph.nodes if n.op == "Matmul"] == [{}]
    assert_same(fn, X, y, path=tmp_path / "p.mlpackage")
