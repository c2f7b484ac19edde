import mlx.core as mx

from tests.coreml.same import assert_same, lowered_graph, ops_of


def test_the_heads_of_one_token_are_a_reshape(tmp_path):
    fn = lambda x: mx.exp(x.reshape(1, 1, 3, 4).transpose(0, 2, 1, 3))  # noqa: E731
    x = mx.random.normal((1, 1, 12))
    assert ops_of(lowered_graph(fn, x)) == ["Reshape", "Exp"]
    assert_same(fn, x, path=tmp_path / "p.mlpackage")


def test_there_and_back_is_nothing(tmp_path):
    fn = lambda x: mx.exp(x[None].transpose(1, 0, 2).transpose(1, 0, 2).squeeze(0))  # noqa: E731
    assert ops_of(lowered_graph(fn, mx.ones((3, 4)))) == ["Exp"]


def test_what_moves_values_stays(tmp_path):
    for fn, shape in (
        (lambda x: x.transpose(0, 2, 1, 3), (1, 2, 3, 4)),
        (lambda x: x.transpose(2, 1, 0), (3, 1, 2)),
    ):
        x = mx.random.normal(shape)
        assert ops_of(lowered_graph(fn, x)) == ["Transpose"]
        assert_same(fn, x, path=tmp_path / "p.mlpackage")
