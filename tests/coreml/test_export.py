"""`macai.coreml.export` as a whole: borders, types, targets, bytes, errors."""

import os
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from macai.coreml import ExportFunction, export, export_functions
from macai.coreml.ops.table import OPS, Entry, lowers
from macai.coreml.package import package_hash
from macai.errors import ExportError, OutputError, UnsupportedOpError, UsageError
from macai.mil import open_package
from tests.coreml.same import as_numpy, assert_same, relative_error, run, save

X = mx.array([[-1.0, 0.5, 2.0], [0.25, -3.0, 4.0]])


class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.Linear(width, 3)
        self.norm = nn.RMSNorm(width)

    def __call__(self, x):
        return self.second(nn.silu(self.norm(self.first(x))))


def test_numbers_are_arrays_of_one_at_the_borders(tmp_path):
    fn = lambda x, s: ((x * s).sum(), s, x.max() > 1)  # noqa: E731
    package = save(fn, [X, mx.array(2.0)], tmp_path / "p.mlpackage", count=3, precision="fp32")
    function = package.functions["main"]
    assert str(function.inputs["x1"]) == "fp32 [1]"
    assert [str(s) for s in function.outputs.values()] == ["fp32 [1]", "fp32 [1]", "int32 [1]"]
    assert_same(fn, X, mx.array(2.0), path=tmp_path / "q.mlpackage")


def test_booleans_are_integers_at_the_borders(tmp_path):
    fn = lambda x, m: (mx.where(m, x, 0), ~m, m)  # noqa: E731
    mask = X > 0
    package = save(fn, [X, mask], tmp_path / "p.mlpackage", count=3)
    assert str(package.functions["main"].inputs["x1"]) == "int32 [2, 3]"
    assert_same(fn, X, mask, path=tmp_path / "q.mlpackage", precisions=("fp32", "fp16"))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x,
        lambda x: (x, x),
        lambda x: (lambda y: (y, y, x))(x + 1),
        lambda x: (x + 1, mx.array([1.0, 2.0])),
        lambda x: (mx.array(3.0), mx.array([True, False])),
        lambda x: mx.broadcast_to(x[:1], (4, 3)),
        lambda x: x.reshape(3, 2).reshape(2, 3),
    ],
)
def test_any_value_may_be_an_output(fn, tmp_path):
    assert_same(fn, X, path=tmp_path / "p.mlpackage")


def test_an_input_may_be_unused(tmp_path):
    assert_same(lambda x, y: x + 1, X, mx.ones(4), path=tmp_path / "p.mlpackage")
    assert_same(lambda x: mx.ones(2), X, path=tmp_path / "p.mlpackage")


def test_unsigned_and_wide_integers_are_int32(tmp_path):
    fn = lambda a, b, c: (a + 1, b * 2, c.astype(mx.int32) - 1)  # noqa: E731
    arrays = [mx.array([1, 2], dtype=d) for d in (mx.uint32, mx.int64, mx.uint8)]
    package = save(fn, arrays, tmp_path / "p.mlpackage", count=3)
    assert {str(s) for s in package.functions["main"].inputs.values()} == {"int32 [2]"}
    assert_same(fn, *arrays, path=tmp_path / "q.mlpackage")


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_weights_of_half_precision(dtype, tmp_path):
    net = Net()
    net.set_dtype(dtype)
    x = X.astype(dtype)
    wide = Net()
    wide.update(net.parameters())
    wide.set_dtype(mx.float32)
    for precision, read, limit in (("fp32", "fp32", 1e-5), ("fp16", "fp16", 5e-3)):
        package = save(net, [x], tmp_path / "p.mlpackage", precision=precision)
        got = run(package, X, precision=read)[0]
        assert relative_error(got, as_numpy(wide(X))) < limit


def test_what_a_half_model_computes_in_float32_stays_float32(tmp_path):
    fn = lambda x: ((x.astype(mx.float32) * 300) ** 2).astype(mx.float16) * 1e-3  # noqa: E731
    scaled = lambda x: (((x.astype(mx.float32) * 300) ** 2) / 90000).astype(mx.float16)  # noqa: E731
    held = mx.array([1.0], dtype=mx.float16)
    package = save(lambda x: scaled(x) * held, [X.astype(mx.float16)], tmp_path / "p.mlpackage")
    result = package.functions["main"].run({"x0": as_numpy(X)}, precision="fp16")
    assert result.overflows == []
    assert relative_error(result.outputs["y0"].astype(np.float32), as_numpy(X**2)) < 2e-3
    assert fn is not None


def test_constants_beyond_float16_are_held_within_it(tmp_path):
    for large in (3.4e38, float("inf"), 1e5):

        def fn(x, large=large):
            scores = mx.where(x > 0, x, -large)
            return mx.softmax(scores, axis=-1) + mx.minimum(x, large)

        package = save(fn, [X], tmp_path / "p.mlpackage")
        result = package.functions["main"].run({"x0": as_numpy(X)}, precision="fp16")
        assert result.overflows == []
        assert relative_error(result.outputs["y0"].astype(np.float32), as_numpy(fn(X))) < 2e-3


@pytest.mark.parametrize("target", ["iOS16", "iOS17", "iOS18"])
def test_targets(target, tmp_path):
    def fn(x, q, start):
        y = mx.fast.scaled_dot_product_attention(q, q, q, scale=0.5, mask="causal")
        z = mx.slice_update(x, x[:1] * 2, start, axes=(0,))
        z = mx.slice_update(z, x[:, :1], mx.array([1]), axes=(1,))
        return y, z, x[mx.array([1, 0])], mx.take_along_axis(x, mx.argsort(x), axis=-1)

    q = mx.random.normal((1, 2, 4, 4))
    inputs = X, q, mx.array([1])
    assert_same(fn, *inputs, path=tmp_path / "p.mlpackage", target=target)
    version = open_package(tmp_path / "p.mlpackage").specification_version
    assert version == {"iOS16": 7, "iOS17": 8, "iOS18": 9}[target]


def two_functions(net, path):
    rows = {"one": {"x": X[:1]}, "two": {"x": X}}
    return export(net, {}, path, functions=rows, force=True)


def test_a_lone_function_may_have_any_name(tmp_path):
    net = nn.Linear(3, 2)
    export(net, {"x": X}, tmp_path / "p.mlpackage", functions={"one": {"x": X}})
    package = open_package(tmp_path / "p.mlpackage")
    assert list(package.functions) == [package.default_function] == ["one"]
    got = package.functions["one"].run({"x": as_numpy(X)}).outputs["output"]
    assert relative_error(got, as_numpy(net(X))) < 5e-3


def test_functions_share_their_weights(tmp_path):
    net = Net(16384)
    one = export(net, {"x": X}, tmp_path / "one.mlpackage")
    two = two_functions(net, tmp_path / "two.mlpackage")
    assert two.bytes < 1.05 * one.bytes
    package = open_package(tmp_path / "two.mlpackage")
    assert list(package.functions) == ["one", "two"]
    assert package.default_function == "one"
    for name, x in (("one", X[:1]), ("two", X)):
        got = package.functions[name].run({"x": as_numpy(x)}).outputs["output"]
        assert relative_error(got, as_numpy(net(x))) < 5e-3  # float16 sums of 16384


def test_weights_are_stored_once(tmp_path):
    """A convolution's is stored the way Core ML wants it, and only so."""
    layer = nn.Conv2d(64, 64, 3)
    made = export(layer, {"x": mx.ones((1, 5, 5, 64))}, tmp_path / "p.mlpackage")
    assert made.bytes < 1.2 * layer.weight.size * 2


_PROCESS = """
import mlx.core as mx, mlx.nn as nn, sys
from macai.coreml import export
from macai.coreml.package import package_hash
from pathlib import Path
mx.random.seed(0)
net = nn.Sequential(nn.Linear(3, 64), nn.gelu, nn.RMSNorm(64), nn.Linear(64, 3))
mx.eval(net.parameters())
fn = lambda x, c: (net(x), mx.slice_update(c, x, mx.array([1]), axes=(0,)))
export(fn, {"x": mx.ones((2, 3))}, sys.argv[1], states={"c": mx.zeros((4, 3))}, weights=net)
print(package_hash(Path(sys.argv[1])))
"""


def test_the_bytes_of_a_package_depend_on_nothing_else(tmp_path):
    hashes = []
    for seed in ("1", "2"):
        code = [sys.executable, "-c", _PROCESS, str(tmp_path / f"{seed}.mlpackage")]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)
        hashes.append(done.stdout.split()[-1])
    assert hashes[0] == hashes[1]


def test_two_exports_in_one_process_are_alike(tmp_path):
    net = Net()
    for name in "ab":
        two_functions(net, tmp_path / f"{name}.mlpackage")
    assert package_hash(tmp_path / "a.mlpackage") == package_hash(tmp_path / "b.mlpackage")


def test_everything_unsupported_is_named_at_once(tmp_path):
    net = Net()

    def fn(x):
        y = mx.fft.rfft(net.first(x)).astype(mx.float32)
        noise = mx.random.normal((3,), key=mx.random.key(0))
        return net.second(y[:, :1] * mx.ones((2, 64))) + noise + x.reshape(1, 1, 1, 1, 2, 3)

    with pytest.raises(UnsupportedOpError) as error:
        save(fn, [X], tmp_path / "p.mlpackage", weights=net)
    message = str(error.value)
    for line in (
        "FFT: Core ML has no Fourier transform (1x, first after first.",
        "RandomBits: random numbers; take them as an input (1x, first near the inputs)",
        "rank 6, and Core ML has at most 5",
    ):
        assert line in message
    assert error.value.hint == "docs/ops.md lists what can"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fn", "inputs", "reason"),
    [
        (lambda x: mx.cummax(x, axis=1), [X], "Scan: scan of kind"),
        (lambda x: mx.view(x, mx.int32), [X], "View: the bits of a number"),
        (
            lambda x: mx.conv_general(x, mx.ones((1, 2, 3)), stride=2, input_dilation=2),
            [X[None]],
            "Convolution: a stride and a dilated input at once",
        ),
        (
            lambda x: mx.conv_general(x, mx.ones((1, 2, 3)), padding=3, input_dilation=2),
            [X[None]],
            "Convolution: more padding than the kernel reaches",
        ),
        (
            lambda x, n: mx.fast.rope(x, 2, traditional=False, base=1.0, scale=1.0, offset=n),
            [mx.ones((2, 1, 3, 4)), mx.array([1, 2])],
            "RoPE: an offset for each row",
        ),
        (nn.GroupNorm(3, 3), [X], "GroupNorm: groups taken the MLX way"),
        (
            lambda x: mx.put_along_axis(x, mx.zeros((2, 0), mx.int32), mx.zeros((2, 0)), axis=1),
            [X],
            "ScatterAxis: no elements, and Core ML has no such arrays",
        ),
    ],
)
def test_a_variant_that_is_not_supported_says_which(fn, inputs, reason, tmp_path):
    with pytest.raises(UnsupportedOpError, match=reason):
        save(fn, inputs, tmp_path / "p.mlpackage")


def test_what_coremltools_refuses_names_the_node(tmp_path):
    fn = lambda x, y: x & y  # noqa: E731
    with pytest.raises(ExportError, match=r"BitwiseBinary.*can only be shifted"):
        save(fn, [mx.array([1]), mx.array([2])], tmp_path / "p.mlpackage")
    kernel = lambda x, w: mx.conv_transpose1d(x, w, stride=2)  # noqa: E731
    with pytest.raises(ExportError, match=r"Convolution.*computed from the inputs"):
        save(kernel, [mx.ones((1, 4, 2)), mx.ones((2, 3, 2))], tmp_path / "p.mlpackage")


def test_a_lowering_with_another_shape_or_type_is_caught(tmp_path, monkeypatch):
    path = tmp_path / "p.mlpackage"
    monkeypatch.setitem(OPS, "Transpose", Entry(lambda lowering, node, x: mb.identity(x=x)))
    with pytest.raises(ExportError, match=r"Transpose.*lowered to shape \[2, 3\]"):
        save(lambda x: x.T, [X], path)
    monkeypatch.setitem(OPS, "Exp", Entry(lambda lowering, node, x: mb.equal(x=x, y=x)))
    with pytest.raises(ExportError, match=r"Exp.*lowered to .*bool"):
        save(mx.exp, [X], path)


def test_an_op_is_lowered_once():
    with pytest.raises(ValueError, match="Add is lowered twice"):
        lowers("Add")(lambda lowering, node: None)


def test_errors_of_use(tmp_path):
    path = tmp_path / "p.mlpackage"
    inputs = {"x": X}
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        export(lambda x: x, inputs, path, precision="fp8")
    with pytest.raises(UsageError, match="unknown target 'iOS15'") as error:
        export(lambda x: x, inputs, path, target="iOS15")
    assert "iOS16, iOS17, iOS18" in error.value.hint
    with pytest.raises(UsageError, match="returns 2 arrays, its outputs and states are 1"):
        export(lambda x: (x, x), inputs, path)
    with pytest.raises(UsageError, match="a package needs a function"):
        export_functions({}, path)
    with pytest.raises(UsageError, match="need iOS18"):
        export(lambda x: x, {}, path, functions={"a": inputs, "b": inputs}, target="iOS17")
    with pytest.raises(UsageError, match="a package is a folder called"):
        export(lambda x: x, inputs, tmp_path / "p.mlmodel")
    export(lambda x: x + 1, inputs, path)
    before = package_hash(path)
    with pytest.raises(OutputError, match="exists"):
        export(lambda x: x + 2, inputs, path)
    assert package_hash(path) == before
    export(lambda x: x + 2, inputs, path, force=True)
    assert package_hash(path) != before


def test_a_function_says_what_it_was_made_of(tmp_path):
    made = export_functions(
        {"a": ExportFunction(fn=lambda x: x + 1, inputs={"x": X}, outputs=("y",))},
        tmp_path / "p.mlpackage",
    )
    assert made.operations == {"a": 2}
    assert made.bytes == sum(p.stat().st_size for p in made.path.rglob("*") if p.is_file())
