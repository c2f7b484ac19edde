import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.coreml.marks import marking
from macai.coreml.trace import trace
from tests.coreml.cases import CASES
from tests.coreml.same import as_numpy, assert_same, ops_of, relative_error, results_of

MARKED = [
    "AvgPool",
    "GroupNorm",
    "LayerNorm",
    "MaxPool",
    "QuantizedEmbedding",
    "RMSNorm",
    "RoPE",
    "ScaledDotProductAttention",
    "UpsampleNearest",
]


@pytest.mark.parametrize("op", MARKED)
def test_marking_changes_no_value(op):
    for fn, inputs in CASES[op]:
        wanted = results_of(fn, inputs)
        with marking() as marks:
            got = results_of(fn, inputs)
        assert op in [name for name, _ in marks.seen]
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == b.dtype
            assert relative_error(as_numpy(a), as_numpy(b)) == 0


@pytest.mark.parametrize("op", MARKED)
def test_a_marked_call_is_one_node(op):
    fn, inputs = CASES[op][0]
    weights = fn if isinstance(fn, nn.Module) else None
    graph = trace(fn, inputs, weights)
    assert ops_of(graph) == [op]


def names():
    owners = [(mx.fast, n) for n in ("rms_norm", "layer_norm", "rope")]
    owners += [(mx.fast, "scaled_dot_product_attention"), (mx, "contiguous")]
    owners += [(c, "__call__") for c in (nn.GroupNorm, nn.Upsample, nn.QuantizedEmbedding)]
    owners += [(nn.layers.pooling._Pool, "__call__")]
    return [getattr(owner, name) for owner, name in owners]


def test_mlx_is_as_before_after_an_exception():
    before = names()

    def fail():
        with marking():
            assert all(a is not b for a, b in zip(names(), before, strict=True))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(a is b for a, b in zip(names(), before, strict=True))


def test_marks_inside_compiled_functions_are_found():
    weight = mx.ones(8)
    inner = mx.compile(lambda x: mx.fast.rms_norm(x, weight, 1e-5) * 2)
    outer = mx.compile(lambda x: inner(x) + 1)
    assert "RMSNorm" in ops_of(trace(outer, [mx.ones((2, 8))]))


def test_marks_inside_functions_compiled_before_are_found():
    compiled = mx.compile(lambda x: mx.fast.rms_norm(x, None, 1e-5))
    x = mx.random.normal((2, 8))
    mx.eval(compiled(x))
    assert ops_of(trace(compiled, [x])) == ["RMSNorm"]
    assert relative_error(as_numpy(compiled(x)), as_numpy(mx.fast.rms_norm(x, None, 1e-5))) == 0


def test_what_depends_by_itself_is_no_mark(tmp_path):
    fn = lambda x, y: mx.depends(x + 1, [y, mx.array(1_000_003)])  # noqa: E731
    inputs = mx.ones(3), mx.ones(3)
    assert ops_of(trace(fn, inputs)) == ["Broadcast", "Add"]
    both = lambda x, y: mx.depends([x + 1, y], [x * 2])  # noqa: E731
    assert_same(both, *inputs, path=tmp_path / "p.mlpackage")


def test_marks_within_marks_are_the_outer_one():
    class Twice(nn.GroupNorm):
        def __call__(self, x):
            return super().__call__(super().__call__(x))

    norm = Twice(2, 4, pytorch_compatible=True)
    assert ops_of(trace(norm, [mx.ones((1, 3, 4))], norm)) == ["GroupNorm", "GroupNorm"]


def test_options_are_kept():
    def fn(x):
        x = mx.fast.rope(x, 4, traditional=True, base=500.0, scale=0.5, offset=3)
        return mx.fast.scaled_dot_product_attention(x, x, x, scale=0.25, mask="causal")

    graph = trace(fn, [mx.ones((1, 2, 3, 8))])
    rope, attention = graph.nodes
    wanted = {"dims": 4, "traditional": True, "base": 500.0, "scale": 0.5, "offset": 3}
    assert wanted.items() <= rope.options.items()
    assert (attention.options["scale"], attention.options["mask"]) == (0.25, "causal")
    assert list(attention.operands()) == ["q", "k", "v"]
    assert attention.operand("mask") is None


def test_other_upsamplings_are_traced_as_they_are(tmp_path):
    for layer in (
        nn.Upsample(2, mode="linear"),
        nn.Upsample(2, mode="linear", align_corners=True),
        nn.Upsample(1.5, mode="cubic"),
    ):
        x = mx.random.normal((1, 3, 4, 2))
        assert "UpsampleNearest" not in ops_of(trace(layer, [x], layer))
        assert_same(layer, x, path=tmp_path / "p.mlpackage")


def test_upsampling_of_a_line_is_traced_as_it_is(tmp_path):
    assert_same(nn.Upsample(2), mx.random.normal((1, 3, 2)), path=tmp_path / "p.mlpackage")
