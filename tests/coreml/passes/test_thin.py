import mlx.core as mx
import mlx.nn as nn

from tests.coreml.same import assert_same, lowered_graph, ops_of

X = mx.random.normal((1, 3, 32))


class Adapted(nn.Module):
    """Products of one value, each with one of low rank beside it."""

    def __init__(self, *ranks, outs=(16, 24, 8)):
        super().__init__()
        self.plain = [nn.Linear(32, out, bias=False) for out in outs]
        self.a = [mx.random.normal((rank, 32)) for rank in ranks]
        self.b = [mx.random.normal((out, rank)) for out, rank in zip(outs, ranks, strict=True)]
        mx.eval(self.parameters())

    def __call__(self, x):
        return [
            mx.addmm(plain(x), x @ a.T, b.T)
            for plain, a, b in zip(self.plain, self.a, self.b, strict=True)
        ]


def test_the_first_products_of_adapters_are_one(tmp_path):
    net = Adapted(4, 2, 4)
    graph = lowered_graph(net, X)
    assert ops_of(graph).count("Linear") == 7
    assert ops_of(graph).count("Split") == 1
    assert [p for p in graph.weights.values() if "+" in p] == ["a.0+a.1+a.2"]
    assert_same(net, X, path=tmp_path / "p.mlpackage", precisions=("fp32", "fp16"))


def test_many_rows_are_a_product_of_their_own(tmp_path):
    net = Adapted(4, 129, 4)
    graph = lowered_graph(net, X)
    assert [p for p in graph.weights.values() if "+" in p] == ["a.0+a.2"]
    assert_same(net, X, path=tmp_path / "p.mlpackage")


def test_products_that_something_else_reads_stay(tmp_path):
    """A model's own projections have paths by which they are compressed."""
    net = Adapted(4, 4, 4)

    def returned(x):
        low = [x @ a.T for a in net.a]
        return [*low, *(v @ b.T for v, b in zip(low, net.b, strict=True))]

    for fn in (
        returned,
        lambda x: [p(x) for p in net.plain],
        lambda x: [nn.silu(x @ a.T) @ b.T for a, b in zip(net.a, net.b, strict=True)],
    ):
        assert not any("+" in p for p in lowered_graph(fn, X, weights=net).weights.values())
        assert_same(fn, X, path=tmp_path / "p.mlpackage", weights=net)


def test_products_of_different_values_stay():
    net = Adapted(4, 4, 4)
    fn = lambda x, y: [*net(x)[:1], *net(y)[1:2]]  # noqa: E731
    assert "Split" not in ops_of(lowered_graph(fn, X, X + 1, weights=net))
