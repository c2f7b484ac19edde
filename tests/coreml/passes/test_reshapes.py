import mlx.core as mx

from tests.coreml.same import assert_same, lowered_graph, ops_of


def test_a_chain_of_shapes_is_one(tmp_path):
    fn = lambda x: x.flatten().reshape(3, 4)[None].squeeze(0).reshape(2, 6) + 1  # noqa: E731
    x = mx.random.normal((3, 2, 2))
    assert ops_of(lowered_graph(fn, x)) == ["Reshape", "Broadcast", "Add"]
    assert_same(fn, x, path=tmp_path / "p.mlpackage")


def test_a_shape_that_ends_where_it_began_is_nothing():
    assert ops_of(lowered_graph(lambda x: mx.exp(x[None].squeeze(0)), mx.ones(3))) == ["Exp"]


def test_a_shape_used_midway_is_kept(tmp_path):
    def fn(x):
        y = x.reshape(6)
        return y.reshape(3, 2), mx.exp(y)

    x = mx.random.normal((2, 3))
    graph = lowered_graph(fn, x)
    assert ops_of(graph).count("Reshape") == 2
    assert_same(fn, x, path=tmp_path / "p.mlpackage")


def test_what_computes_between_shapes_ends_the_chain():
    ops = ops_of(lowered_graph(lambda x: mx.exp(x.reshape(6)).reshape(3, 2), mx.ones((2, 3))))
    assert ops == ["Reshape", "Exp", "Reshape"]


def test_a_result_that_is_an_input_in_the_end_can_be_exported(tmp_path):
    fn = lambda x: x.reshape(6).reshape(2, 3)  # noqa: E731
    assert_same(fn, mx.random.normal((2, 3)), path=tmp_path / "p.mlpackage")
