"""The protobuf of a package: each thing once, names that are safe, and read by coremltools too."""

import re
from collections import Counter

import coremltools as ct
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.milproto.load import load

from macai.coreml import ExportFunction, Metadata, Settings, export, export_functions
from macai.coreml.compress import Compression, Scheme
from macai.coreml.package import save_package
from macai.mil import open_package
from tests.coreml.same import assert_same, save

X = mx.array([[-1.0, 0.5, 2.0], [0.25, -3.0, 4.0]])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 64), nn.Linear(64, 64)
        self.norm = nn.RMSNorm(64)

    def __call__(self, x):
        return self.second(nn.silu(self.norm(self.first(x))))


def stateful(x, total):
    total = mx.slice_update(total, x, mx.array([1]), axes=(0,))
    return total.sum(axis=0), total


def program_of(path):
    """What coremltools reads of a package."""
    return ct.utils.load_spec(str(path)).mlProgram


def operations_of(function):
    return function.block_specializations[function.opset].operations


@pytest.mark.parametrize(
    ("target", "scheme", "states"),
    [
        ("iOS16", None, False),
        ("iOS17", None, False),
        ("iOS18", None, True),
        ("iOS18", "int8", False),
        ("iOS18", "uint4-32", False),
        ("iOS18", "palette4", False),
    ],
)
def test_coremltools_reads_what_it_did_not_write(target, scheme, states, tmp_path):
    net = Net()
    path = tmp_path / "p.mlpackage"
    compress = Compression(default=Scheme.parse(scheme)) if scheme else None
    function = ExportFunction(fn=net, inputs={"x": X}, weights=net, settings=Settings())
    if compress:
        function = ExportFunction(
            fn=net, inputs={"x": X}, weights=net, settings=Settings(compress=compress)
        )
    functions = {"main": function}
    if states:
        functions["more"] = ExportFunction(
            fn=stateful, inputs={"x": X}, states={"total": mx.zeros((4, 3))}
        )
    export_functions(functions, path, target=target)
    model = ct.models.MLModel(str(path), skip_model_load=True)
    assert model.get_spec().specificationVersion == {"iOS16": 7, "iOS17": 8, "iOS18": 9}[target]
    program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    assert sorted(program.functions) == sorted(functions)
    program.validate()
    for name, function in open_package(path).functions.items():
        own = program.functions[name]
        assert [v.name for v in own.outputs] == list(function.outputs)
        kinds = Counter(op.op_type for op in own.operations if op.op_type != "const")
        wanted = Counter(op.type for op in function.operations if op.type != "const")
        # It takes a write of a state and the read after it for one operation.
        kinds["write_state"] = kinds.pop("coreml_update_state", 0)
        wanted["read_state"] -= wanted["write_state"]
        assert +kinds == +wanted


def test_each_constant_of_a_function_is_there_once(tmp_path):
    net = Net()

    def fn(x):
        for _ in range(3):
            x = nn.silu(net(x).reshape(2, 8, 8).transpose(0, 2, 1).reshape(2, 64)[:, :3] * 0.5)
        return x

    path = tmp_path / "p.mlpackage"
    export(fn, {"x": X}, path, weights=net)
    operations = operations_of(program_of(path).functions["main"])
    values = [op.attributes["val"].SerializeToString() for op in operations if op.type == "const"]
    assert len(values) == len(set(values)) > 10
    assert_same(fn, X, path=tmp_path / "q.mlpackage", precisions=("fp16",))


def test_constants_that_only_compare_equal_are_two(tmp_path):
    for size in (2, 32):  # in the program, and in the weight file
        zeros = np.zeros(size, np.float32)
        fn = lambda x, z=zeros: (1 / (x.max() * mx.array(z)), 1 / (x.max() * mx.array(-z)))  # noqa: E731
        package = save(fn, [X], tmp_path / "p.mlpackage", count=2, precision="fp32")
        got = package.functions["main"].run({"x0": np.array(X)}).outputs
        assert (got["y0"] == np.inf).all()
        assert (got["y1"] == -np.inf).all()


def test_equal_weights_are_stored_once_whatever_they_are_called(tmp_path):
    net = Net()
    one = export(net, {"x": X}, tmp_path / "a.mlpackage")
    twin = nn.Sequential(net.first, nn.Linear(64, 64), nn.Linear(64, 64))
    twin.layers[1].weight = twin.layers[2].weight * 1
    twin.layers[1].bias = twin.layers[2].bias * 1
    two = export(twin, {"x": X}, tmp_path / "b.mlpackage")
    assert two.bytes < one.bytes + 64


def test_names_are_short_and_a_weight_has_its_path_once(tmp_path):
    net = Net()
    path = tmp_path / "p.mlpackage"
    export(net, {}, path, functions={"one": {"a0": X[:1]}, "two": {"a0": X}}, outputs=("b0",))
    program = program_of(path)
    seen = Counter()
    for function in program.functions.values():
        names = [o.name for op in operations_of(function) for o in op.outputs]
        assert len(names) == len(set(names))
        assert "a0" not in names
        assert names[-1] == "b0"
        short = [n for n in names if re.fullmatch("[a-zA-Z][0-9A-Z][0-9A-Za-z]?", n)]
        seen.update(set(names) - set(short))
        for op in operations_of(function):
            assert list(op.attributes) == (["val"] if op.type == "const" else [])
    assert seen["first_weight"] == seen["second_bias"] == 1
    assert set(seen) == {f"{m}_{w}" for m in ("first", "second") for w in ("weight", "bias")} | {
        "norm_weight"
    }


def test_what_no_output_needs_is_not_written_and_every_input_is_read(tmp_path):
    @mb.function(
        input_specs=[mb.TensorSpec((2,)), mb.TensorSpec((3,))], opset_version=ct.target.iOS18
    )
    def function(x, spare):
        mb.exp(x=mb.mul(x=x, y=np.float32(2)))
        known = mb.add(x=np.float32([1, 2]), y=np.float32([3, 4]))
        return mb.add(x=x, y=known, name="y")

    path = tmp_path / "p.mlpackage"
    options = {"opset": ct.target.iOS18, "default": "main", "metadata": Metadata()}
    save_package({"main": function}, path, **options)
    operations = operations_of(program_of(path).functions["main"])
    assert [op.type for op in operations] == ["identity", "const", "add"]
    assert operations[0].inputs["x"].arguments[0].name == "spare"
    given = {"x": np.float32([1, 1]), "spare": np.zeros(3, np.float32)}
    got = open_package(path).functions["main"].run(given).outputs["y"]
    np.testing.assert_array_equal(got, [5, 7])


def test_a_write_of_a_state_is_called_after_it_where_it_has_no_name(tmp_path):
    path = tmp_path / "p.mlpackage"
    export(stateful, {"x": X}, path, states={"total": mx.zeros((4, 3))})
    operations = open_package(path).functions["main"].operations
    assert [op.name for op in operations if op.type == "write_state"] == ["total"]


def test_a_bias_of_zeros_is_not_written(tmp_path):
    path = tmp_path / "p.mlpackage"
    plain, biased = nn.Linear(3, 64, bias=False), nn.Linear(64, 64)
    export(nn.Sequential(plain, biased), {"x": X}, path)
    linears = [
        op for op in operations_of(program_of(path).functions["main"]) if op.type == "linear"
    ]
    assert [sorted(op.inputs) for op in linears] == [["weight", "x"], ["bias", "weight", "x"]]


def test_float32_and_back_is_nothing(tmp_path):
    held = mx.array([1.0], dtype=mx.float16)
    fn = lambda x: mx.exp(x.astype(mx.float32).astype(mx.float16)) * held  # noqa: E731
    package = save(fn, [X.astype(mx.float16)], tmp_path / "p.mlpackage")
    assert "cast" not in [op.type for op in package.functions["main"].operations]
