import mlx.core as mx
import pytest

from tests.coreml.same import assert_same, lowered_graph, ops_of, save

X = mx.random.normal((3, 4, 1, 5))


@pytest.mark.parametrize(
    "fn",
    [lambda x: x[1:2].squeeze(0), lambda x: x[:, -1], lambda x: x[2, 1:], lambda x: x[0, :, :, 3]],
)
def test_an_index_takes_and_drops_its_axis_in_one_op(fn, tmp_path):
    assert ops_of(lowered_graph(fn, X)) == ["Pick"]
    assert_same(fn, X, path=tmp_path / "p.mlpackage")
    operations = save(fn, [X], tmp_path / "p.mlpackage").functions["main"].operations
    kinds = [op.type for op in operations if op.type != "const"]
    assert kinds == ["slice_by_index", "identity"]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x[1:2],
        lambda x: x[1:2].reshape(2, 10),
        lambda x: x[1:, :, 0],
        lambda x: x[0, 0, 0, 2],
        lambda x: (lambda y: (y.squeeze(0), y + 1))(x[1:2]),
    ],
)
def test_other_slices_and_shapes_stay(fn, tmp_path):
    """An axis that had size 1 before is not the slice's; one value would have no axis left."""
    assert "Pick" not in ops_of(lowered_graph(fn, X))
    assert_same(fn, X, path=tmp_path / "p.mlpackage")
