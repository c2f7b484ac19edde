"""What an opened package says of itself, and what a run takes and gives."""

import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, get_new_symbol, types

import macai.mil
from macai.errors import PackageError
from macai.mil import Overflow, Range, TensorSpec, open_package
from tests.mil.packages import build, run, save, save_model, state, tensor

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((64, 32)).astype(np.float16)


def layer(x):
    return mb.linear(x=x, weight=WEIGHT, name="layer")


@pytest.fixture
def package(tmp_path):
    return build(layer, tensor(1, 32, dtype="fp16"), path=tmp_path / "p.mlpackage")


X = RNG.standard_normal((1, 32)).astype(np.float16)
EXACT = X.astype(np.float64) @ WEIGHT.T.astype(np.float64)


def test_the_exported_names_are_these():
    assert sorted(macai.mil.__all__) == [
        "Function", "Overflow", "Package", "Range", "Result", "TensorSpec", "open_package",
    ]  # fmt: skip


def test_a_package_says_what_is_in_it(tmp_path):
    @mb.program(input_specs=[tensor(1, 32, dtype="fp16")], opset_version=ct.target.iOS18)
    def program(x):
        return layer(x)

    def convert():
        model = ct.convert(
            program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True,
            compute_precision=ct.precision.FLOAT32,
        )  # fmt: skip
        model.author, model.license, model.version = "A", "L", "V"
        model.short_description = "S"
        model.user_defined_metadata["k"] = "v"
        return model

    package = open_package(save_model(convert, tmp_path / "p.mlpackage"))
    assert (package.author, package.license, package.version) == ("A", "L", "V")
    assert package.short_description == "S"
    assert package.metadata["k"] == "v"
    assert package.specification_version == 9
    assert package.default_function == "main"
    assert package.weight_bytes >= WEIGHT.nbytes
    assert package.size_bytes > package.weight_bytes


def test_a_function_says_what_it_takes_gives_and_does(package):
    fn = package.functions["main"]
    assert fn.inputs == {"x0": TensorSpec("fp16", (1, 32), default_shape=(1, 32))}
    assert fn.outputs["layer"].shape == (1, 64)
    assert fn.states == {}
    (linear,) = [o for o in fn.operations if o.type == "linear"]
    assert linear.name == "layer"
    assert linear.input_names["x"] == ("x0",)
    assert str(linear.outputs["layer"]) == "fp16 [1, 64]"


def test_fp32_rounds_nothing_and_fp16_everything(package):
    (exact,) = run(package, X)
    (rounded,) = run(package, X, precision="fp16")
    assert exact.dtype == np.float32
    assert rounded.dtype == np.float16
    assert np.abs(exact - EXACT).max() < 1e-5
    assert np.array_equal(rounded, exact.astype(np.float16))
    assert not np.array_equal(rounded, exact)


def test_inputs_declared_fp16_are_rounded_only_in_fp16(package):
    fine = X.astype(np.float32) + np.float32(1e-5)
    assert not np.array_equal(run(package, fine)[0], run(package, X)[0])
    halves = run(package, fine.astype(np.float16), precision="fp16")[0]
    assert np.array_equal(run(package, fine, precision="fp16")[0], halves)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "missing inputs 'x0'"),
        ({"x0": X, "y": X}, "unknown inputs 'y'"),
        ({"x0": X[0]}, r"input 'x0' has shape \[32\], not fp16 \[1, 32\]"),
        ({"x0": X.astype(int)}, r"input 'x0' is int64, not fp16 \[1, 32\]"),
    ],
)
def test_wrong_inputs_are_named_and_the_hint_says_what_is_right(package, inputs, message):
    with pytest.raises(PackageError, match=message) as e:
        package.functions["main"].run(inputs)
    assert e.value.hint == "inputs are x0: fp16 [1, 32]"


def test_integers_must_fit(tmp_path):
    package = build(
        lambda x: mb.add(x=x, y=np.int32(1)),
        tensor(1, dtype="int32"),
        path=tmp_path / "p.mlpackage",
    )
    assert run(package, np.array([2**31 - 2])) == [[2**31 - 1]]
    with pytest.raises(PackageError, match="values that do not fit int32"):
        run(package, np.array([2**31]))


def test_outputs_are_the_callers_own(tmp_path):
    package = build(
        lambda x: (mb.identity(x=x), mb.const(val=np.ones(2, np.float32))),
        tensor(2), path=tmp_path / "p.mlpackage",
    )  # fmt: skip
    x = np.zeros(2, np.float32)
    for output in run(package, x):
        output += 5
    assert [o.tolist() for o in run(package, x)] == [[0, 0], [1, 1]]
    assert not x.any()


def overflowing(x):
    """300² fits no fp16, and what follows only passes it on."""
    square = mb.square(x=x, name="square")
    return mb.rsqrt(x=mb.reduce_mean(x=square, axes=[0], name="mean"), name="scale")


def test_an_overflow_is_reported_where_it_begins(tmp_path):
    package = build(overflowing, tensor(3, dtype="fp16"), path=tmp_path / "p.mlpackage")
    x = np.array([300, 1, 300], np.float16)
    fn = package.functions["main"]
    result = fn.run({"x0": x}, precision="fp16")
    assert result.overflows == [Overflow("square", "square", "square", 2)]
    assert result.outputs["scale"] == 0
    exact = fn.run({"x0": x})
    assert exact.overflows == []
    assert np.allclose(exact.outputs["scale"], 60000.33**-0.5)


def test_values_on_the_way_are_kept_that_are_asked_for(tmp_path):
    package = build(overflowing, tensor(3, dtype="fp16"), path=tmp_path / "p.mlpackage")
    kept = {"square": np.empty(0), "nothing": np.empty(0)}
    package.functions["main"].run({"x0": np.array([3, 1, 2], np.float16)}, kept=kept)
    assert kept["square"].tolist() == [9, 1, 4]
    assert kept["nothing"].size == 0


def test_masks_of_infinities_are_no_overflow(tmp_path):
    def masked(x):
        return mb.softmax(x=mb.add(x=x, y=np.array([0, -np.inf, 0], np.float16)))

    package = build(masked, tensor(3, dtype="fp16"), path=tmp_path / "p.mlpackage")
    result = package.functions["main"].run({"x0": np.zeros(3, np.float16)}, precision="fp16")
    assert result.overflows == []
    assert next(iter(result.outputs.values())).tolist() == [0.5, 0, 0.5]


def test_an_fp32_island_stays_fp32(tmp_path):
    def island(x):
        wide = mb.square(x=mb.cast(x=x, dtype="fp32"))
        return mb.cast(x=mb.sqrt(x=wide), dtype="fp16")

    package = build(island, tensor(1, dtype="fp16"), path=tmp_path / "p.mlpackage")
    assert run(package, np.array([300], np.float16), precision="fp16") == [[300]]


def counting_reads(package, kind: str, parameter: str) -> list[int]:
    """Return a list that grows each time the weight an operation is given is decoded."""
    reads: list[int] = []
    operations = list(package.functions["main"].operations)
    (weight,) = next(o.inputs[parameter] for o in operations if o.type == kind)
    if isinstance(weight, str):
        (weight,) = next(o.inputs["val"] for o in operations if weight in o.outputs)
    read = weight.read
    object.__setattr__(weight, "read", lambda: reads.append(1) or read())
    return reads


def test_weights_are_decoded_once_or_each_time_as_the_budget_allows(tmp_path):
    path = build(layer, tensor(1, 32, dtype="fp16"), path=tmp_path / "p.mlpackage").path
    for budget, decodings in [(1 << 20, 1), (0, 3)]:
        package = open_package(path, weight_cache_bytes=budget)
        reads = counting_reads(package, "linear", "weight")
        for _ in range(3):
            assert np.abs(run(package, X)[0] - EXACT).max() < 1e-5
        assert len(reads) == decodings


def test_a_weight_is_decoded_once_for_all_functions_and_precisions(tmp_path):
    program = Program()
    for name, rows in (("main", 1), ("two", 2)):
        spec = {"x": tensor(rows, 32, dtype="fp16")}
        with Function(spec, opset_version=ct.target.iOS18) as function:
            weight = mb.const(val=WEIGHT)
            weight.op.weight_id = "weight"
            function.set_outputs([mb.linear(x=function.inputs["x"], weight=weight, name="y")])
        program.add_function(name, function)
    program.export_as_multifunction = True
    package = open_package(save(program, tmp_path / "p.mlpackage"))
    reads = counting_reads(package, "linear", "weight")
    assert np.abs(run(package, X, function="main")[0] - EXACT).max() < 1e-5
    both = np.concatenate([X, 2 * X])
    assert np.abs(run(package, both, function="two")[0] - [[1], [2]] * EXACT).max() < 1e-5
    for name, x in (("main", X), ("two", both)):
        run(package, x, function=name, precision="fp16")
    cache = package.functions["two"].limits.cache
    assert len(reads) == 1
    assert [a.size for a in cache.decoded.values()].count(WEIGHT.size) == 1


def test_a_compressed_embedding_is_decompressed_once(tmp_path):
    def embedding(i):
        table = mb.constexpr_blockwise_shift_scale(
            data=np.arange(6, dtype=np.int8).reshape(3, 2), scale=np.full((3, 1), 2, np.float16)
        )
        return mb.gather(x=table, indices=i)

    package = build(embedding, tensor(1, dtype="int32"), path=tmp_path / "p.mlpackage")
    reads = counting_reads(package, "constexpr_blockwise_shift_scale", "data")
    for i in (0, 2, 1):
        assert run(package, np.array([i]))[0].tolist() == [[4 * i, 4 * i + 2]]
    assert len(reads) == 1


def test_compressed_weights_are_rounded_to_their_declared_type(tmp_path):
    def compressed(x):
        weight = mb.constexpr_blockwise_shift_scale(
            data=np.array([[3]], np.int8), scale=np.array([[0.1]], np.float16)
        )
        return mb.linear(x=x, weight=weight)

    package = build(compressed, tensor(1, 1, dtype="fp16"), path=tmp_path / "p.mlpackage")
    (y,) = run(package, np.ones((1, 1), np.float16))
    assert y == np.float16(3 * np.float32(np.float16(0.1)))
    assert y != 3 * np.float32(np.float16(0.1))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_indices_of_any_width_are_unpacked(tmp_path, bits):
    # 67 values of 3 bits end inside a byte.
    indices = RNG.integers(0, 1 << bits, (67, 1))
    lut = np.arange(1 << bits, dtype=np.float16).reshape(1, 1, -1, 1)
    packed = indices.astype(types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}")))

    def table(x):
        weight = mb.constexpr_lut_to_dense(indices=packed, lut=lut)
        return mb.linear(x=x, weight=weight)

    package = build(table, tensor(1, 1, dtype="fp16"), path=tmp_path / "p.mlpackage")
    (y,) = run(package, np.ones((1, 1), np.float16))
    assert y[0].tolist() == indices[:, 0].tolist()


def test_negative_int4_are_unpacked(tmp_path):
    values = np.arange(-8, 8).reshape(16, 1)
    data = values.astype(types.nptype_from_builtin(types.int4))

    def compressed(x):
        weight = mb.constexpr_blockwise_shift_scale(data=data, scale=np.ones((1, 1), np.float16))
        return mb.linear(x=x, weight=weight)

    package = build(compressed, tensor(1, 1, dtype="fp16"), path=tmp_path / "p.mlpackage")
    assert run(package, np.ones((1, 1), np.float16))[0][0].tolist() == values[:, 0].tolist()


def test_functions_share_states_and_one_is_the_default(tmp_path):
    program = Program()
    spec = {"cache": state(2), "x": tensor(2, dtype="fp16")}
    for name in ("grow", "shrink"):
        with Function(spec, opset_version=ct.target.iOS18) as function:
            cache, x = function.inputs["cache"], function.inputs["x"]
            combine = mb.add if name == "grow" else mb.sub
            y = mb.coreml_update_state(
                state=cache, value=combine(x=mb.read_state(input=cache), y=x)
            )
            function.set_outputs([mb.identity(x=y, name="y")])
        program.add_function(name, function)
    program.default_function_name = "grow"
    program.export_as_multifunction = True
    path = save_model(
        lambda: ct.convert(
            program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True,
            compute_precision=ct.precision.FLOAT32, pass_pipeline=ct.PassPipeline.EMPTY,
        ),
        tmp_path / "p.mlpackage",
    )  # fmt: skip
    package = open_package(path)
    assert set(package.functions) == {"grow", "shrink"}
    assert package.default_function == "grow"
    memory = package.make_state("grow")
    x = np.array([3, 4], np.float16)
    assert run(package, x, state=memory)[0].tolist() == [3, 4]
    assert run(package, x * 3, state=memory, function="shrink")[0].tolist() == [-6, -8]


def test_a_range_is_what_the_description_allows(tmp_path):
    length = get_new_symbol()

    @mb.program(input_specs=[tensor(1, length)], opset_version=ct.target.iOS18)
    def program(x):
        return mb.reduce_sum(x=mb.concat(values=[x, x], axis=1), axes=[1], name="y")

    def convert():
        return ct.convert(
            program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True,
            inputs=[ct.TensorType(name="x", shape=(1, ct.RangeDim(2, 5, default=3)))],
            compute_precision=ct.precision.FLOAT32,
        )  # fmt: skip

    package = open_package(save_model(convert, tmp_path / "p.mlpackage"))
    fn = package.functions["main"]
    assert fn.inputs["x"] == TensorSpec("fp32", (1, Range(2, 5)), default_shape=(1, 3))
    for n in (2, 5):
        assert run(package, np.ones((1, n), np.float32))[0] == 2 * n
    for n in (1, 6):
        with pytest.raises(PackageError, match=rf"shape \[1, {n}\], not fp32 \[1, 2\.\.5\]"):
            run(package, np.ones((1, n), np.float32))


def test_an_optional_input_has_its_default(tmp_path, package):
    from coremltools.proto import Model_pb2

    path = package.path / "Data/com.apple.CoreML/model.mlmodel"
    model = Model_pb2.Model.FromString(path.read_bytes())
    feature = model.description.input[0].type
    feature.isOptional = True
    feature.multiArrayType.floatDefaultValue = 2
    path.write_bytes(model.SerializeToString())
    fn = open_package(package.path).functions["main"]
    assert fn.inputs["x0"].optional
    (y,) = fn.run({}).outputs.values()
    assert np.allclose(y, 2 * WEIGHT.astype(np.float32).sum(1), atol=1e-4)
    (y,) = fn.run({"x0": X}).outputs.values()
    assert np.allclose(y, EXACT, atol=1e-4)


def test_a_run_ends_when_it_is_told_to(package):
    stop = threading.Event()
    fn = package.functions["main"]
    fn.run({"x0": X}, stop=stop)
    stop.set()
    with pytest.raises(CancelledError):
        fn.run({"x0": X}, stop=stop)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what of a file is in memory")
def test_weights_that_were_read_take_memory_once(tmp_path):
    weight = RNG.standard_normal((2048, 1024)).astype(np.float16)
    path = tmp_path / "p.mlpackage"
    package = build(lambda x: mb.linear(x=x, weight=weight), tensor(1, 1024), path=path)
    (file,) = path.rglob("weight.bin")
    run(package, np.ones((1, 1024), np.float32))
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    _, _, mapped = maps.partition(str(file))
    resident = int(mapped.partition("Rss:")[2].split()[0]) << 10
    assert 0 < weight.nbytes <= file.stat().st_size
    assert resident < weight.nbytes / 10
