import mlx.core as mx

from tests.coreml.same import assert_same, lowered_graph, ops_of

Q, K = mx.random.normal((1, 4, 3, 8)), mx.random.normal((1, 2, 3, 8))
P = mx.array([5])


def turn(x, offset, **options):
    given = {"traditional": False, "base": 1e4, "scale": 1.0} | options
    return mx.fast.rope(x, 8, offset=offset, **given)


def test_queries_and_keys_are_turned_together(tmp_path):
    fn = lambda q, k, p: (turn(q, p), turn(k, p))  # noqa: E731
    assert ops_of(lowered_graph(fn, Q, K, P))[:3] == ["Concatenate", "RoPE", "Split"]
    assert_same(fn, Q, K, P, path=tmp_path / "p.mlpackage", precisions=("fp32", "fp16"))


def test_layers_are_turned_one_after_the_other(tmp_path):
    def fn(q, k, p):
        for _ in range(3):
            q, k = turn(q, p), turn(k, p)
            q = q + k.sum()
            k = k + q[:, :2]
        return q, k

    ops = ops_of(lowered_graph(fn, Q, K, P))
    assert ops.count("RoPE") == ops.count("Concatenate") == ops.count("Split") == 3
    assert_same(fn, Q, K, P, path=tmp_path / "p.mlpackage")


def test_one_that_is_read_before_the_other_stays(tmp_path):
    def fn(q, k, p):
        q = turn(q, p)
        return q, turn(k + q.mean(), p)

    assert "Concatenate" not in ops_of(lowered_graph(fn, Q, K, P))
    assert_same(fn, Q, K, P, path=tmp_path / "p.mlpackage")


def test_what_turns_otherwise_stays(tmp_path):
    for fn in (
        lambda q, k, p: (turn(q, p), turn(k, p, base=1e5)),
        lambda q, k, p: (turn(q, p), turn(k, p + 1)),
        lambda q, k, p: (turn(q, p), turn(k[:, :, :2], p)),
    ):
        assert ops_of(lowered_graph(fn, Q, K, P)).count("RoPE") == 2
        assert_same(fn, Q, K, P, path=tmp_path / "p.mlpackage")
