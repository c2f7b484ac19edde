import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.coreml.trace import trace
from macai.errors import ExportError
from tests.coreml.same import assert_same, ops_of


def test_values_have_shapes_types_and_places():
    layer = nn.Linear(4, 6)
    graph = trace(lambda x: layer(x).astype(mx.float16), [mx.ones((2, 4))], layer)
    assert [(v.shape, v.dtype) for v in graph.inputs] == [((2, 4), "float32")]
    assert [(v.shape, v.dtype) for v in graph.outputs] == [((2, 6), "float16")]
    assert set(graph.weights.values()) == {"weight", "bias"}
    assert [node.where for node in graph.nodes][-1] in ("weight", "bias")
    assert "float32 [2, 4]" in str(graph.nodes[-2])


@pytest.mark.parametrize("look", [lambda x: x * x.sum().item(), lambda x: mx.eval(x) or x])
def test_a_function_that_looks_at_values_is_refused(look):
    with pytest.raises(ExportError, match=r"cannot be traced.*eval") as error:
        trace(look, [mx.ones(3)])
    assert "never evaluate one" in error.value.hint


def test_a_function_that_returns_a_dict_is_refused():
    with pytest.raises(ExportError, match="Outputs can be either a single array"):
        trace(lambda x: {"y": x}, [mx.ones(3)])


def test_a_primitive_that_mlx_cannot_describe_is_named():
    with pytest.raises(ExportError, match="BitwiseInvert") as error:
        trace(lambda x: ~x, [mx.array([1, 2])])
    assert "MLX cannot describe that primitive" in error.value.hint


def test_the_module_and_the_device_are_as_before(monkeypatch):
    layer = nn.Linear(4, 6)
    before = layer.weight, layer.bias
    device = mx.default_device()
    trace(layer, [mx.ones((2, 4))], layer)
    with pytest.raises(ExportError):
        trace(lambda x: layer(x) * x.sum().item(), [mx.ones((2, 4))], layer)
    assert layer.weight is before[0]
    assert layer.bias is before[1]
    assert mx.default_device() == device


def test_an_array_with_two_names_is_one_weight(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def __call__(self, x):
            return self.b(self.a(x))

    tied = Tied()
    graph = trace(tied, [mx.ones((2, 4))], tied)
    assert list(graph.weights.values()) == ["a.weight"]
    assert tied.b.weight is tied.a.weight
    assert_same(tied, mx.random.normal((2, 4)), path=tmp_path / "p.mlpackage")


def test_arrays_not_evaluated_yet_are_constants_all_the_same():
    held = mx.random.normal((3,)) * 2
    assert "RandomBits" not in ops_of(trace(lambda x: x + held, [mx.ones(3)]))
    layer = nn.Linear(4, 6)
    layer._scale = mx.random.normal((6,))
    graph = trace(lambda x: layer(x) * layer._scale, [mx.ones((2, 4))], layer)
    assert "RandomBits" not in ops_of(graph)


def test_random_numbers_stay_visible():
    graph = trace(lambda x: x + mx.random.normal((3,)), [mx.ones(3)])
    assert "RandomBits" in ops_of(graph)


def test_what_no_result_needs_is_not_in_the_graph():
    def fn(x):
        mx.exp(x) * mx.ones(3)
        return x + 1

    graph = trace(fn, [mx.ones(3)])
    assert "Exp" not in ops_of(graph)
    assert len(graph.constants) == 1


def test_gradients_and_vmaps_are_traced(tmp_path):
    x = mx.random.normal((2, 3))
    assert_same(lambda x: mx.grad(lambda y: (y**3).sum())(x), x, path=tmp_path / "p.mlpackage")
    assert_same(lambda x: mx.vmap(mx.softmax)(x), x, path=tmp_path / "p.mlpackage")


def test_compiled_functions_are_traced_through(tmp_path):
    compiled = mx.compile(lambda x: mx.exp(x) * 2 + 1)
    x = mx.random.normal((2, 3))
    mx.eval(compiled(x))  # compiled before: the trace must go through it all the same
    assert_same(lambda x: compiled(compiled(x) * 0.1), x, path=tmp_path / "p.mlpackage")


def test_compiled_functions_of_constants_are_traced_through(tmp_path):
    compiled = mx.compile(lambda a: mx.exp(a) * a + 1)
    held = mx.array([1.0, 2.0])
    assert_same(lambda x: x * compiled(held), mx.ones((3, 2)), path=tmp_path / "p.mlpackage")
