"""A damaged or malicious package gives one PackageError: no other error, and no huge allocation."""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.proto import Model_pb2

from macai.errors import PackageError, UnsupportedMilOpError
from macai.mil import open_package
from macai.mil.ops import control as control_ops
from macai.mil.ops import size
from tests.mil.mutate import MODEL, WEIGHTS, damage
from tests.mil.packages import build, state, tensor

SEEDS_EACH = 105
rng = np.random.default_rng(0)


def decoder(ids, position, cache):
    """Embedding, a quantised layer, a cache, attention."""
    table = rng.standard_normal((16, 8)).astype(np.float16)
    x = mb.gather(x=table, indices=ids, axis=0)
    data = rng.integers(0, 16, (8, 8)).astype(types.nptype_from_builtin(types.uint4))
    weight = mb.constexpr_blockwise_shift_scale(
        data=data, scale=np.full((8, 2), 0.1, np.float16), offset=np.full((8, 2), 8, np.float16)
    )
    k = mb.reshape(x=mb.linear(x=x, weight=weight), shape=[1, 1, 1, 8])
    zero = np.zeros(1, np.int32)
    begin = mb.concat(values=[zero, zero, position, zero], axis=0)
    end = mb.add(x=begin, y=np.array([1, 1, 1, 8], np.int32))
    old = mb.read_state(input=cache)
    kept = mb.slice_update(x=old, update=k, begin=begin, end=end)
    kept = mb.coreml_update_state(state=cache, value=kept)
    y = mb.scaled_dot_product_attention(query=k, key=kept, value=kept)
    return mb.softmax(x=mb.layer_norm(x=y, axes=[-1]), axis=-1)


def pictures(x):
    """Convolutions, pools, resizing, padding."""
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    y = mb.conv(x=x, weight=weight, pad_type="same", strides=[2, 2])
    y = mb.max_pool(x=mb.gelu(x=y), kernel_sizes=[2, 2], strides=[1, 1], pad_type="valid")
    y = mb.upsample_bilinear(x=y, scale_factor_height=2, scale_factor_width=2)
    y = mb.pad(x=y, pad=[1, 1, 2, 0], mode="reflect")
    y = mb.conv_transpose(x=y, weight=np.ones((4, 2, 2, 2), np.float32), strides=[2, 2])
    parts = mb.split(x=y, num_splits=2, axis=1)
    top, _ = mb.topk(x=mb.reshape(x=parts[0], shape=[1, -1]), k=5)
    return mb.concat(values=[top, mb.reduce_mean(x=parts[1], axes=[1, 2])], axis=-1)


def control(x):
    """Branches, loops, lists, shapes made of values."""
    count = np.int32(3)
    items = mb.make_list(init_length=3, elem_shape=(2,), dtype="fp32")

    def body(i, ls):
        return mb.add(x=i, y=np.int32(1)), mb.list_write(ls=ls, index=i, value=x)

    _, items = mb.while_loop(
        _cond=lambda i, ls: mb.less(x=i, y=count), _body=body, loop_vars=(np.int32(0), items)
    )
    y = mb.list_gather(ls=items, indices=[0, 2])
    y = mb.cond(
        pred=mb.greater(x=mb.reduce_sum(x=x), y=np.float32(0)),
        _true_fn=lambda: mb.mul(x=y, y=np.float32(2)),
        _false_fn=lambda: mb.identity(x=y),
    )
    shape = mb.shape(x=y)
    y = mb.tile(x=mb.fill(shape=shape, value=np.float32(2)), reps=[2, 1])
    return mb.add(x=y, y=mb.range_1d(end=np.float32(2), start=np.float32(0), step=np.float32(1)))


PROGRAMS = {
    "decoder": (
        decoder,
        (tensor(1, 1, dtype="int32"), tensor(1, dtype="int32"), state(1, 1, 4, 8)),
    ),
    "pictures": (pictures, (tensor(1, 3, 6, 6),)),
    "control": (control, (tensor(2),)),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        name: build(body, *specs, path=folder / f"{name}.mlpackage").path
        for name, (body, specs) in PROGRAMS.items()
    }


def use(path: Path) -> None:
    """Open a package and run all its functions on zeros at both precisions."""
    package = open_package(path, value_limit_bytes=1 << 24)
    for name, fn in package.functions.items():
        memory = package.make_state(name)
        inputs = {
            n: np.zeros(
                [d if isinstance(d, int) else 1 for d in spec.shape or ()],
                np.int32 if "int" in spec.dtype else np.float32,
            )
            for n, spec in fn.inputs.items()
        }
        for precision in ("fp32", "fp16"):
            fn.run(inputs, state=memory, precision=precision)


@pytest.mark.parametrize("name", PROGRAMS)
def test_damaged_packages_give_package_errors(tmp_path, sources, name, monkeypatch):
    monkeypatch.setattr(size, "MAX_ELEMENTS", 1 << 20)
    use(sources[name])
    errors: list[PackageError] = []
    tracemalloc.start()
    for seed in range(SEEDS_EACH):
        target = tmp_path / str(seed)
        what = damage(sources[name], target, seed)
        try:
            use(target)
        except PackageError as e:
            errors.append(e)
        except Exception as e:
            raise AssertionError(what) from e
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20
    assert all(e.hint for e in errors)
    assert len(errors) > SEEDS_EACH // 4
    assert len({e.message for e in errors}) > SEEDS_EACH // 8


def change(path: Path, edit) -> None:
    """Edit the protobuf of a package in place."""
    model = Model_pb2.Model.FromString((path / MODEL).read_bytes())
    edit(model)
    (path / MODEL).write_bytes(model.SerializeToString())


@pytest.fixture
def copy(tmp_path, sources):
    def copy(name: str = "decoder") -> Path:
        return Path(shutil.copytree(sources[name], tmp_path / f"{name}.mlpackage"))

    return copy


def main_block(model):
    (function,) = model.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return block


def operation(model, kind: str):
    return next(o for o in main_block(model).operations if o.type == kind)


def test_what_is_no_package_is_said_to_be_none(tmp_path):
    with pytest.raises(PackageError, match="is not there"):
        open_package(tmp_path / "none.mlpackage")
    (tmp_path / "file.mlpackage").write_text("")
    with pytest.raises(PackageError, match="is a file"):
        open_package(tmp_path / "file.mlpackage")
    with pytest.raises(PackageError, match=r"Manifest\.json: cannot be read"):
        open_package(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("[" * 100_000, "not JSON"),
        ("{}", "names no root model"),
        ('{"rootModelIdentifier": [], "itemInfoEntries": {}}', "names no root model"),
        ('{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": 3}}}', "path is 3"),
        ('{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "b"}}}', "is missing"),
        (
            '{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../../x"}}}',
            "is outside the package",
        ),
        (
            '{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "/etc/passwd"}}}',
            "is outside the package",
        ),
        (
            '{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "a\\u0000b"}}}',
            "is not a path",
        ),
    ],
)
def test_a_manifest_leads_nowhere_else(copy, manifest, message):
    path = copy()
    (path / "Manifest.json").write_text(manifest)
    with pytest.raises(PackageError, match=message):
        open_package(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("@model_path/../../../../x", "is outside the package"),
        ("/etc/passwd", "its weights are in '/etc/passwd'"),
        ("@model_path/none.bin", "is missing"),
        ("@model_path/weights", "is missing"),
    ],
)
def test_weights_are_inside_the_package(copy, name, message):
    path = copy()

    def edit(model):
        for o in main_block(model).operations:
            if o.attributes["val"].HasField("blobFileValue"):
                o.attributes["val"].blobFileValue.fileName = name

    change(path, edit)
    with pytest.raises(PackageError, match=message):
        open_package(path)


def test_a_link_out_of_the_package_is_not_followed(copy, tmp_path):
    path = copy()
    shutil.move(path / WEIGHTS, tmp_path / "weight.bin")
    (path / WEIGHTS).symlink_to(tmp_path / "weight.bin")
    with pytest.raises(PackageError, match="is outside the package"):
        open_package(path)


def test_a_neural_network_is_said_to_be_one(copy):
    path = copy()
    change(path, lambda model: model.neuralNetwork.layers.add())
    with pytest.raises(PackageError, match="of type neuralNetwork, not an ML Program") as e:
        open_package(path)
    assert "mlprogram" in e.value.hint


def test_truncated_weights_are_said_to_be_so(copy):
    path = copy()
    data = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(data[:200])
    with pytest.raises(PackageError, match=r"weight\.bin: it ends at \d+, the file at 200"):
        open_package(path)
    (path / WEIGHTS).write_bytes(b"")
    with pytest.raises(PackageError, match="is past the end, 0"):
        open_package(path)


def test_a_weight_of_another_type_is_refused(copy):
    path = copy()
    data = bytearray((path / WEIGHTS).read_bytes())
    data[64 + 4] = 2
    (path / WEIGHTS).write_bytes(data)
    with pytest.raises(PackageError, match=r"declared fp16 \[16, 8\], stored as fp32"):
        open_package(path)


def test_a_value_must_be_defined_before_it_is_used(copy):
    path = copy()

    def edit(model):
        o = operation(model, "linear")
        o.inputs["x"].arguments[0].name = o.outputs[0].name

    change(path, edit)
    with pytest.raises(PackageError, match="is used before it is defined"):
        open_package(path)


def test_a_name_is_defined_once(copy):
    path = copy()

    def edit(model):
        operation(model, "linear").outputs[0].name = operation(model, "gather").outputs[0].name

    change(path, edit)
    with pytest.raises(PackageError, match="is defined twice"):
        open_package(path)


def test_an_absurd_shape_is_refused_before_anything_is_allocated(copy):
    path = copy()

    def edit(model):
        shape = operation(model, "linear").outputs[0].type.tensorType.dimensions
        shape[2].constant.size = 1 << 33

    change(path, edit)
    package = open_package(path)
    with pytest.raises(PackageError, match=r"its values take 32\.0 GiB, over the limit"):
        package.functions["main"].prepare()


def test_a_shape_that_is_not_computed_is_reported(copy):
    path = copy()

    def edit(model):
        operation(model, "linear").outputs[0].type.tensorType.dimensions[1].constant.size = 2

    change(path, edit)
    with pytest.raises(PackageError, match=r"shape \[1, 1, 8\], declared fp16 \[1, 2, 8\]"):
        use(path)


def test_deep_nesting_is_refused(copy):
    path = copy("control")

    def edit(model):
        o = operation(model, "cond")
        for _ in range(200):
            o = o.blocks[0].operations.add(type="cond")
            o.blocks.add()

    model = Model_pb2.Model.FromString((path / MODEL).read_bytes())
    edit(model)
    (path / MODEL).write_bytes(model.SerializePartialToString())
    with pytest.raises(PackageError, match="not a Core ML model"):
        open_package(path)


def test_all_unknown_operations_are_named_at_once(copy):
    path = copy()

    def edit(model):
        operation(model, "linear").type = "magic"
        operation(model, "softmax").type = "wonder"
        operation(model, "reshape").type = "magic"

    change(path, edit)
    package = open_package(path)
    with pytest.raises(UnsupportedMilOpError, match=r"cannot be run: magic \(2×\), wonder \(1×\)"):
        package.functions["main"].prepare()


def test_unknown_and_missing_inputs_of_an_operation_are_named(copy):
    path = copy()

    def edit(model):
        o = operation(model, "linear")
        o.inputs["w"].CopyFrom(o.inputs["weight"])
        del o.inputs["weight"]

    change(path, edit)
    with pytest.raises(PackageError, match="inputs unknown w and missing weight"):
        use(path)


def test_a_loop_goes_on_only_so_long(sources, monkeypatch):
    monkeypatch.setattr(control_ops, "MAX_ITERATIONS", 2)
    with pytest.raises(PackageError, match="still going on after 2 iterations"):
        use(sources["control"])


def test_what_is_made_of_values_is_limited(tmp_path):
    def huge(n):
        return mb.fill(shape=n, value=np.float32(0))

    package = build(huge, tensor(2, dtype="int32"), path=tmp_path / "p.mlpackage")
    with pytest.raises(PackageError, match=r"a tensor of shape \[65536, 65536\] is over"):
        package.functions["main"].run({"x0": np.full(2, 1 << 16)})
