import mlx.core as mx
import mlx.nn as nn

from tests.coreml.same import assert_same, lowered_graph, ops_of


def test_rows_are_taken_in_one_op(tmp_path):
    table = nn.Embedding(9, 4)
    for shape in ((3,), (2, 3), (1, 2, 3)):
        n = mx.random.randint(0, 9, shape)
        assert ops_of(lowered_graph(table, n)) == ["Take"]
        assert_same(table, n, path=tmp_path / "p.mlpackage")


def test_other_indices_are_gathered(tmp_path):
    x, n = mx.random.normal((5, 4, 3)), mx.array([1, 3])
    for fn in (
        lambda x, n: mx.take(x, n, axis=1),
        lambda x, n: x[n, n],
        lambda x, n: x[n[0]],
    ):
        assert "Take" not in ops_of(lowered_graph(fn, x, n))
        assert_same(fn, x, n, path=tmp_path / "p.mlpackage")


def test_an_index_may_count_from_the_end_where_it_is_no_token(tmp_path):
    """MIL's gather takes no such index since iOS 17, macai.mil's does: so look at the program."""
    from tests.coreml.same import save

    def kinds(fn, *inputs, **options):
        package = save(fn, inputs, tmp_path / "p.mlpackage", **options)
        return [op.type for op in package.functions["main"].operations if op.type != "const"]

    x, n = mx.random.normal((5, 4)), mx.array([1, -3])
    assert "select" in kinds(lambda x, n: x[n], x, n)
    assert "select" in kinds(lambda x, n: x[n, n], x, n)
    assert "select" in kinds(lambda x, n: mx.take_along_axis(x, n[None], axis=1), x[:1], n)
    table = nn.Embedding(9, 4)
    assert "select" not in kinds(table, n, weights=table)
    assert "select" not in kinds(lambda x, n: x[n], x, n.astype(mx.uint32))
    assert "select" not in kinds(lambda x: mx.take_along_axis(x, mx.argsort(x), axis=-1), x)
    assert "select" not in kinds(lambda x: x[mx.array([-1, 2])], x)
