import mlx.core as mx
import mlx.nn as nn

from tests.coreml.same import assert_same, lowered_graph, ops_of


class Head(nn.Module):
    def __init__(self, *, cap: float | None = None, bias: bool = False) -> None:
        super().__init__()
        self.norm, self.out, self.cap = nn.RMSNorm(4), nn.Linear(4, 9, bias=bias), cap

    def __call__(self, x: mx.array) -> mx.array:
        y = self.out(nn.silu(self.norm(x)))
        return y if self.cap is None else mx.tanh(y / self.cap) * self.cap


def last_row(y: mx.array, n: mx.array) -> mx.array:
    return mx.slice(y, n, axes=(1,), slice_size=(1, 1, y.shape[2]))


def rows_of(graph) -> list[int]:
    return [n.outputs[0].shape[1] for n in graph.nodes if len(n.outputs[0].shape) == 3]


def test_a_row_is_chosen_before_what_treats_rows_alike(tmp_path):
    for head in (Head(), Head(bias=True), Head(cap=30.0)):
        fn = lambda x, n, head=head: last_row(head(x), n)  # noqa: E731
        x, n = mx.random.normal((1, 6, 4)), mx.array([2])
        graph = lowered_graph(fn, x, n, weights=head)
        assert graph.nodes[0].op == "DynamicSlice"
        assert set(rows_of(graph)) == {1}
        assert_same(fn, x, n, path=tmp_path / "p.mlpackage", weights=head)


def test_a_row_known_now_is_chosen_first_too(tmp_path):
    head = Head()
    fn = lambda x: head(x)[:, -1:]  # noqa: E731
    x = mx.random.normal((1, 6, 4))
    graph = lowered_graph(fn, x, weights=head)
    assert graph.nodes[0].op == "Slice"
    assert_same(fn, x, path=tmp_path / "p.mlpackage", weights=head)


def test_what_mixes_rows_or_is_used_whole_is_not_passed(tmp_path):
    head = Head()
    n, x = mx.array([2]), mx.random.normal((1, 6, 4))
    mixing = lambda x, n: last_row(mx.cumsum(x, axis=1), n)  # noqa: E731
    assert ops_of(lowered_graph(mixing, x, n))[0] == "Scan"
    used = lambda x, n: (lambda y: (last_row(y, n), y))(head(x))  # noqa: E731
    graph = lowered_graph(used, x, n, weights=head)
    assert [o.op for o in graph.nodes][-1] == "DynamicSlice"
    other = lambda x, n: last_row(x * x[:, :1], n)  # noqa: E731
    assert ops_of(lowered_graph(other, x, n))[-1] == "DynamicSlice"
    rows = lambda x, n: last_row(x + mx.arange(6.0)[None, :, None], n)  # noqa: E731
    assert ops_of(lowered_graph(rows, x, n))[-1] == "DynamicSlice"
    for fn in (mixing, used, other, rows):
        assert_same(fn, x, n, path=tmp_path / "p.mlpackage")


def test_a_choice_on_another_axis_stays(tmp_path):
    head = Head()
    fn = lambda x: head(x)[:, :, :3]  # noqa: E731
    x = mx.random.normal((1, 6, 4))
    assert ops_of(lowered_graph(fn, x, weights=head))[-1] == "Slice"
    assert_same(fn, x, path=tmp_path / "p.mlpackage", weights=head)


def test_a_choice_of_both_axes_stays(tmp_path):
    head = Head()
    fn = lambda x: head(x)[:, 1:2, :3]  # noqa: E731
    x = mx.random.normal((1, 6, 4))
    assert_same(fn, x, path=tmp_path / "p.mlpackage", weights=head)


def test_a_number_under_a_fraction_is_not_a_row(tmp_path):
    fn = lambda x: (2.0 / (x + 9))[:, 1:2]  # noqa: E731
    assert_same(fn, mx.random.normal((1, 6, 4)), path=tmp_path / "p.mlpackage")
