"""Functions whose inputs may have other sizes: one program that is right for all of them."""

import coremltools as ct
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from coremltools.converters.mil.frontend.milproto.load import load

from macai.coreml import ExportFunction, Size, export, export_functions
from macai.coreml.flexible import trace_flexible
from macai.coreml.ops import OPS
from macai.coreml.package import package_hash
from macai.errors import ExportError, PackageError, UsageError
from macai.mil import open_package
from tests.coreml.same import as_numpy, relative_error, results_of
from tests.coreml.test_ops import SIZED

TOKENS = Size(name="tokens", most=64)
WIDTH = Size(name="width", least=2, most=48)
X = mx.zeros((1, 8, 6))
HALF = mx.array(np.linspace(-2, 2, 6, dtype=np.float32))


def saved(fn, path, inputs=None, flexible=None, **options):
    inputs = {"x": X} if inputs is None else inputs
    flexible = {"x": {1: TOKENS}} if flexible is None else flexible
    count = len(results_of(fn, inputs.values()))
    outputs = [f"y{n}" for n in range(count)]
    export(fn, inputs, path, outputs=outputs, flexible=flexible, precision="fp32", **options)
    return open_package(path)


def numbers(*shape, seed=0):
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def assert_right(fn, package, *inputs):
    names = list(package.functions["main"].inputs)
    given = {name: as_numpy(array) for name, array in zip(names, inputs, strict=True)}
    got = package.functions["main"].run(given).outputs.values()
    for own, wanted in zip(got, results_of(fn, inputs), strict=True):
        assert relative_error(own, as_numpy(wanted)) < 1e-5


def written(x):
    y = x + 1
    y[:, :, 2:4] = x[:, :, :2]
    return y


FUNCTIONS = {
    "elementwise": lambda x: mx.sigmoid(x * HALF) + 1,
    "heads": lambda x: x.reshape(1, x.shape[1], 2, 3).transpose(0, 2, 1, 3) * 2,
    "flattened": lambda x: x.reshape(-1, 3) @ HALF.reshape(3, 2),
    "numbers": lambda x: mx.arange(x.shape[1]) + mx.array([2 * x.shape[1] - 1]),
    "a scalar": lambda x: x.sum(axis=-1) * mx.array(x.shape[1]),
    "odd numbers": lambda x: mx.arange(1, 2 * x.shape[1], 2) * 1.0,
    "backwards": lambda x: x[:, :, ::-1],
    "some of a row": lambda x: (x[:, :, 1:5], x[..., 2]),
    "joined with itself": lambda x: mx.concatenate([x, x * x], axis=1),
    "broadcast": lambda x: mx.concatenate([x, mx.broadcast_to(HALF, x.shape)], axis=-1),
    "causal": lambda x: mx.where(
        mx.arange(x.shape[1])[:, None] >= mx.arange(x.shape[1])[None], x @ x.swapaxes(1, 2), -9.0
    ),
    "a part written over": lambda x: mx.slice_update(
        mx.concatenate([x, x]), x * 2, mx.array([1, 0, 0]), axes=(0, 1, 2)
    ),
    "some columns written over": written,
    "softmax": lambda x: mx.softmax(x @ x.swapaxes(1, 2), axis=-1),
    "norms": lambda x: mx.fast.rms_norm(x, HALF, 1e-5) + mx.fast.layer_norm(x, HALF, None, 1e-5),
    "rotations": lambda x: mx.fast.rope(
        x[:, None], 4, traditional=False, base=1e4, scale=1.0, offset=mx.array([3])
    ),
    "neighbours": lambda x: mx.fast.rope(
        x[:, None], 6, traditional=True, base=1e4, scale=1.0, offset=mx.array([x.shape[1]])
    ),
    "attention": lambda x: mx.fast.scaled_dot_product_attention(
        x.reshape(1, -1, 3, 2).swapaxes(1, 2), x[:, None, :, :2], x[:, None, :, :2], scale=0.7
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_program_is_right_for_sizes_it_was_not_traced_with(name, tmp_path):
    fn = FUNCTIONS[name]
    package = saved(fn, tmp_path / "p.mlpackage")
    for tokens in (1, 2, 8, 33, 64):
        assert_right(fn, package, numbers(1, tokens, 6, seed=tokens))


def test_ops_that_only_such_functions_have_are_used_here():
    graph = trace_flexible(FUNCTIONS["numbers"], {"x": X}, [], {"x": {1: TOKENS}})
    assert OPS.keys() >= SIZED
    assert {n.op for n in graph.nodes} >= SIZED


def test_two_sizes_are_told_apart(tmp_path):
    def fn(x, y):
        return x @ y, mx.array([x.shape[1] - 3 * y.shape[2] + 1])

    inputs = {"x": mx.zeros((1, 4, 6)), "y": mx.zeros((1, 6, 4))}
    flexible = {"x": {1: TOKENS}, "y": {2: WIDTH}}
    package = saved(fn, tmp_path / "p.mlpackage", inputs, flexible)
    for tokens, width in [(1, 2), (40, 3), (7, 48), (5, 5)]:
        assert_right(fn, package, numbers(1, tokens, 6), numbers(1, 6, width))


def test_one_size_of_two_inputs_is_alike(tmp_path):
    fn = lambda x, y: x * y  # noqa: E731
    inputs = {"x": X, "y": X}
    package = saved(fn, tmp_path / "p.mlpackage", inputs, {"x": {1: TOKENS}, "y": {1: TOKENS}})
    assert_right(fn, package, numbers(1, 21, 6), numbers(1, 21, 6, seed=1))
    given = {"x": np.zeros((1, 3, 6), np.float32), "y": np.zeros((1, 4, 6), np.float32)}
    with pytest.raises(PackageError):
        package.functions["main"].run(given)


def test_a_state_is_written_as_far_as_there_are_rows(tmp_path):
    def fn(x, total):
        total = mx.slice_update(total, x[0], mx.array([1, 0]), axes=(0, 1))
        return total.sum(axis=0), total

    path = tmp_path / "p.mlpackage"
    export(fn, {"x": X}, path, states={"total": mx.zeros((32, 6))}, flexible={"x": {1: TOKENS}})
    package = open_package(path)
    state = package.make_state()
    for tokens in (5, 2):
        package.functions["main"].run(
            {"x": np.full((1, tokens, 6), tokens, np.float32)}, state=state
        )
    assert state["total"][:, 0].tolist() == [0, 2, 2, 5, 5, 5] + [0] * 26


def test_the_description_has_the_ranges_and_the_least_as_default(tmp_path):
    path = tmp_path / "p.mlpackage"
    saved(lambda x: x + 1, path, flexible={"x": {1: TOKENS, 2: WIDTH}}, inputs={"x": X})
    array = ct.utils.load_spec(str(path)).description.input[0].type.multiArrayType
    ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
    assert ranges == [(1, 1), (1, 64), (2, 48)]
    assert list(array.shape) == [1, 1, 2]


@pytest.mark.parametrize("tokens", [0, 65])
def test_a_size_beyond_its_range_is_refused(tokens, tmp_path):
    package = saved(lambda x: x + 1, tmp_path / "p.mlpackage")
    with pytest.raises(PackageError, match=r"1\.\.64"):
        package.functions["main"].run({"x": np.zeros((1, tokens, 6), np.float32)})


@pytest.mark.parametrize("target", ["iOS16", "iOS17", "iOS18"])
def test_coremltools_own_reader_takes_such_a_package(target, tmp_path):
    path = tmp_path / "p.mlpackage"
    saved(FUNCTIONS["heads"], path, target=target)
    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    program = load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
    assert program.functions["main"].inputs["x"].shape[::2] == (1, 6)


def test_an_export_is_the_same_to_the_last_byte_the_second_time(tmp_path):
    for name in ("a", "b"):
        saved(FUNCTIONS["causal"], tmp_path / f"{name}.mlpackage")
    assert package_hash(tmp_path / "a.mlpackage") == package_hash(tmp_path / "b.mlpackage")


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x.mean(axis=1), "a constant depends on a size: float32"),
        (lambda x: x * mx.array(x.shape[1] ** 2), "a constant depends on a size: int32"),
        (lambda x: x * mx.array(list(range(x.shape[1])))[:, None], "a constant depends on a size"),
        (lambda x: (x * 2, mx.array([0.5 * x.shape[1]])), "read by an output"),
        (lambda x: x + 1 if x.shape[1] % 4 == 3 else x - 1, "another operation"),
        (lambda x: x[:, x.shape[1] - 1 :], "Slice: a part whose place depends on a size"),
        (lambda x: x[:, : x.shape[1] // 2], "no sum of sizes explains"),
        (lambda x: x.reshape(2, -1), "no sum of sizes explains|cannot be traced"),
        (lambda x: mx.arange(x.shape[1], 2 * x.shape[1]), "Arange: a start or step"),
    ],
)
def test_what_depends_on_a_size_in_another_way_is_refused(fn, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        saved(fn, tmp_path / "p.mlpackage", {"x": mx.zeros((1, 12, 7))})
    assert not (tmp_path / "p.mlpackage").exists()


def test_another_way_for_many_rows_is_not_taken_where_few_are_one_function(tmp_path):
    """mlx-lm sorts what goes to experts from 64 entries on: the same values, another way."""
    fn = lambda x: x * 2 if x.shape[1] < 12 else x + x  # noqa: E731
    package = saved(fn, tmp_path / "p.mlpackage")
    assert_right(fn, package, numbers(1, 3, 6))
    assert_right(fn, package, numbers(1, 50, 6))


def test_a_write_by_numbered_places_which_older_systems_need_is_refused(tmp_path):
    with pytest.raises(ExportError, match="SliceUpdate"):
        saved(written, tmp_path / "p.mlpackage", target="iOS17")


def test_flexible_sizes_and_several_functions_are_refused(tmp_path):
    one = ExportFunction(fn=nn.relu, inputs={"x": X}, flexible={"x": {1: TOKENS}})
    with pytest.raises(UsageError, match="a has flexible sizes, and the package other functions"):
        export_functions({"a": one, "b": one}, tmp_path / "p.mlpackage")


@pytest.mark.parametrize(
    ("flexible", "message"),
    [
        ({"x": {1: Size(name="tokens", least=4, most=8)}}, "too narrow a range: tokens 4..8"),
        ({"x": {1: TOKENS, 2: Size(name="tokens", most=9)}}, "two sizes have one name"),
        ({"y": {1: TOKENS}}, "no input y with an axis 1"),
        ({"x": {3: TOKENS}}, "no input x with an axis 3"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(flexible, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        saved(nn.relu, tmp_path / "p.mlpackage", flexible=flexible)
