import mlx.core as mx
import pytest

from tests.coreml.same import assert_same, lowered_graph, ops_of

X = mx.random.normal((3, 4, 5), key=mx.random.key(0))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: mx.mean(x, axis=1),
        lambda x: mx.mean(x, axis=(0, 2), keepdims=True),
        mx.mean,
        lambda x: x.sum(axis=-1) / 5,
        lambda x: x.sum(axis=-1, keepdims=True) * 0.2,
    ],
)
def test_a_sum_over_its_count_is_a_mean(fn, tmp_path):
    ops = ops_of(lowered_graph(fn, X))
    assert "Mean" in ops
    assert not {"Reduce", "Multiply", "Divide"} & set(ops)
    assert_same(fn, X, path=tmp_path / "p.mlpackage")


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.sum(axis=-1) / 4,
        lambda x: x.sum(axis=-1) * 0.25,
        lambda x: 5 / x.sum(axis=-1),
        lambda x: x.max(axis=-1) / 5,
        lambda x: (lambda s: (s / 5, s))(x.sum(axis=-1)),
        lambda x: x.sum(axis=-1)[:, :1] / 5,
        lambda x: x.sum(axis=-1) * mx.array([0.2, 0.1, 0.2, 0.2]),
        lambda x: x.sum(axis=0)[0] / mx.full((2, 1), 3.0),
        lambda x: x.astype(mx.int32).sum(axis=-1) / 5,
    ],
)
def test_any_other_quotient_of_a_sum_stays(fn, tmp_path):
    assert "Mean" not in ops_of(lowered_graph(fn, X))
    assert_same(fn, X, path=tmp_path / "p.mlpackage")


def test_the_variance_of_a_sample_is_not_that_of_all(tmp_path):
    x = mx.random.normal((2, 1000), key=mx.random.key(0))
    fn = lambda x: mx.var(x, axis=1, ddof=1)  # noqa: E731
    ops = ops_of(lowered_graph(fn, x))
    assert (ops.count("Mean"), ops.count("Reduce")) == (1, 1)
    assert_same(fn, x, path=tmp_path / "p.mlpackage")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_a_mean_in_half_precision_is_a_mean(dtype):
    assert "Mean" in ops_of(lowered_graph(lambda x: mx.mean(x, axis=1), X.astype(dtype)))
