import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml import ExportFunction, export_functions
from macai.coreml.api import graph_of
from macai.coreml.compress import Compression, Scheme
from macai.coreml.lower import Settings
from macai.coreml.ops import channels
from macai.coreml.passes import PASSES
from macai.coreml.passes.channels_first import channels_first
from macai.mil import open_package
from tests.coreml.cases import f
from tests.coreml.channel_cases import CASES, LAYERS
from tests.coreml.same import TOLERANCE, as_numpy, ops_of, relative_error, results_of, run, together

P = mx.array([5])


def function(fn, inputs, weights=None, **settings):
    if weights is None and isinstance(fn, nn.Module):
        weights = fn
    return ExportFunction(
        fn=fn,
        inputs={f"x{n}": array for n, array in enumerate(inputs)},
        outputs=[f"y{n}" for n in range(len(results_of(fn, inputs)))],
        weights=weights,
        settings=Settings(fused_attention=False, **settings),
        passes=(*PASSES, channels_first),
    )


def saved(path, fn, *inputs, **options):
    made = function(fn, inputs, **options)
    export_functions({"main": made}, path, force=True)
    return open_package(path)


def types_of(package):
    return [o.type for o in package.functions["main"].operations]


def assert_same(path, fn, *inputs, precisions=("fp32", "fp16"), **options):
    wanted = [as_numpy(a) for a in results_of(fn, inputs)]
    for written in precisions:
        package = saved(path, fn, *inputs, precision=written, **options)
        for read in dict.fromkeys(("fp32", written)):
            got = run(package, *inputs, precision=read)
            errors = [relative_error(g, w) for g, w in zip(got, wanted, strict=True)]
            assert max(errors) <= TOLERANCE[written, read], (written, read, errors)


@pytest.mark.parametrize("op", CASES)
def test_each_case_uses_its_op_and_computes_what_mlx_does(op, tmp_path):
    for number, (fn, inputs) in enumerate(CASES[op]):
        ops = ops_of(graph_of(function(fn, inputs, LAYERS)))
        assert op in ops, f"case {number}: {ops}"
    fn, inputs = together(CASES[op])
    assert_same(tmp_path / "p.mlpackage", fn, *inputs, weights=LAYERS)


class Block(nn.Module):
    """A transformer's block, with its heads taken apart and put together as mlx-lm does."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(32)
        self.q, self.o = (nn.Linear(32, 32, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(32, 16, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(32, 48) for _ in range(2))
        self.down = nn.Linear(48, 32)

    def __call__(self, x, p):
        B, L, _ = x.shape
        y = self.norm(x)
        q, k, v = (
            layer(y).reshape(B, L, n, 8).transpose(0, 2, 1, 3)
            for layer, n in ((self.q, 4), (self.k, 2), (self.v, 2))
        )
        q, k = (
            mx.fast.rope(a, 8, traditional=False, base=1e4, scale=1.0, offset=p) for a in (q, k)
        )
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=8**-0.5, mask="causal")
        x = x + self.o(out.transpose(0, 2, 1, 3).reshape(B, L, -1))
        return x + self.down(nn.silu(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("length", [1, 6])
def test_a_block_is_convolutions_and_attention_a_head_at_a_time(length, tmp_path):
    assert_same(tmp_path / "p.mlpackage", Block(), f(1, length, 32), P, positions=32)
    package = open_package(tmp_path / "p.mlpackage")
    operations = list(package.functions["main"].operations)
    kinds = [o.type for o in operations]
    assert kinds.count("conv") == 7
    assert kinds.count("einsum") == 2 * 4
    assert not {"linear", "matmul", "scaled_dot_product_attention", "cast"} & set(kinds)
    shapes = [t.shape for o in operations for t in o.outputs.values() if hasattr(t, "shape")]
    assert max(len(shape) for shape in shapes if shape is not None) == 4


def test_what_goes_in_and_comes_out_is_turned_once():
    ops = ops_of(graph_of(function(Block(), (f(1, 6, 32), P))))
    assert ops.count("Transpose") == 4  # in and out, and keys and values, as no cache has them
    assert ops.count("Reshape") == 2


def test_a_norm_of_large_values_stays_within_float16(tmp_path):
    x = f(1, 3, 64) * mx.array([25000.0] + 63 * [20.0])
    fn = lambda x: mx.fast.rms_norm(x, None, 1e-5)  # noqa: E731
    package = saved(tmp_path / "p.mlpackage", fn, x)
    for scale in (1.0, 1e-3, 1e-7, 0.0):
        result = package.functions["main"].run({"x0": np.array(x * scale)}, precision="fp16")
        assert not result.overflows
        assert np.abs(result.outputs["y0"] - np.array(fn(x * scale))).max() <= 0.01


def test_a_batch_of_several_stays_as_it_is(tmp_path):
    x, model = f(2, 4, 16), nn.Sequential(nn.Linear(16, 8), nn.SiLU())
    assert "linear" in types_of(saved(tmp_path / "p.mlpackage", model, x))
    assert_same(tmp_path / "p.mlpackage", model, x)


class Tied(nn.Module):
    """An embedding that is the head as well."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(96, 32)

    def __call__(self, ids):
        return self.embed.as_linear(self.embed(ids))


@pytest.mark.parametrize("scheme", ["palette4-16", "palette6", "int8", "int4-32"])
def test_a_wide_head_is_in_parts_and_a_table_in_full_with_the_same_values(
    scheme, tmp_path, monkeypatch
):
    monkeypatch.setattr(channels, "WIDEST", 40)
    model, ids = Tied(), mx.array([[3, 95, 40]])
    compression = Compression(default=Scheme.parse(scheme))
    path = tmp_path / "p.mlpackage"
    package = saved(path, model, ids, compress=compression, precision="fp32")
    kinds = types_of(package)
    step = 16 if scheme == "palette4-16" else 1
    assert kinds.count("conv") == -(-96 // (40 // step * step))
    weight = np.array(model.embed.weight)
    stored = compression("embed.weight", weight)
    model.embed.weight = mx.array(stored.dense("fp32"))
    [got] = run(package, ids)
    assert relative_error(got, np.array(model(ids))) < 1e-5
    plain = [o for o in package.functions["main"].operations if o.type == "gather"]
    made = {name: o.type for o in package.functions["main"].operations for name in o.outputs}
    assert made[plain[0].inputs["x"][0]] == "const"
