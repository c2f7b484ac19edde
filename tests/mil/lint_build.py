"""Packages and bundles for the tests of the lint: built small, then edited."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.proto import Model_pb2

from tests.mil.packages import build, save, state, tensor

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"

Make = Callable[[Path, Path], Path]
"""(an empty folder, the clean bundle) -> what is examined."""


def built(body: Callable, *specs, target=ct.target.iOS18) -> Make:
    """Make a package of a program with inputs x0, x1, ... of these specs."""

    made: list[Path] = []

    def make(folder: Path, bundle: Path) -> Path:
        path = folder / "m.mlpackage"
        if made:  # coremltools takes long, and several rules begin with one program
            return Path(shutil.copytree(made[0], path))
        made.append(build(body, *specs, path=path, target=target).path)
        return Path(shutil.copytree(made[0], folder / "own" / path.name))

    return make


def half(*shape):
    return tensor(*shape, dtype="fp16")


def edit(package: Path, change: Callable) -> Path:
    """Change the protobuf of a package in place."""
    spec = Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    change(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())
    return package


def edited(make: Make, change: Callable) -> Make:
    return lambda folder, bundle: edit(make(folder, bundle), change)


def clean(folder: Path, bundle: Path) -> Path:
    """The clean bundle itself; not to be changed."""
    return bundle


def copied(folder: Path, bundle: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "copy"))


def of_copy(change: Callable) -> Make:
    """Make a copy of the clean bundle and change it, given its folder."""

    def make(folder: Path, bundle: Path) -> Path:
        copy = copied(folder, bundle)
        change(copy)
        return copy

    return make


def of_package(change: Callable) -> Make:
    """Make a copy of the clean bundle's package and change its protobuf."""
    return lambda folder, bundle: edit(copied(folder, bundle) / "Tiny.mlpackage", change)


def of_json(name: str, **values) -> Make:
    """Make a copy of the clean bundle with entries of a JSON file set; None removes one."""

    def change(copy: Path) -> None:
        file = copy / name
        content = json.loads(file.read_text()) | values
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return of_copy(change)


def in_json(name: str, change: Callable) -> Make:
    """Make a copy of the clean bundle with the content of a JSON file changed in place."""

    def write(copy: Path) -> None:
        content = json.loads((copy / name).read_text())
        change(content)
        (copy / name).write_text(json.dumps(content))

    return of_copy(write)


def without(*names: str) -> Make:
    return of_copy(lambda copy: [(copy / name).unlink() for name in names])


def weight(*shape, seed=0, dtype=np.float16):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def stateful(body: Callable, *shapes) -> Make:
    """Make a program on x0, float16 [4, 32], and states x1, ...: [4, 32] if not given."""
    states = [state(*shape) for shape in shapes or [(4, 32)]]
    return built(body, half(4, 32), *states)


def sdpa(*query, keys=8, **more) -> Make:
    """Make a fused attention of a query and constant keys and values."""

    def body(x):
        shape = (*query[:-2], keys, query[-1])
        given = {"key": weight(*shape), "value": weight(*shape, seed=1), **more}
        return mb.scaled_dot_product_attention(query=x, **given)

    return built(body, half(*query))


def swift(
    *,
    ids="inputIds",
    mask="causalMask",
    keys="keyCache",
    values="valueCache",
    logits="logits",
    rank=3,
    ranged=True,
    extra=False,
    name="org/model",
) -> Make:
    """Make what swift-transformers takes for a language model with a state, or nearly so."""

    def body(i, m, k, v, *others):
        k2 = mb.coreml_update_state(
            state=k, value=mb.add(x=mb.read_state(input=k), y=np.float16(1))
        )
        v2 = mb.coreml_update_state(
            state=v, value=mb.add(x=mb.read_state(input=v), y=np.float16(1))
        )
        rows = mb.gather(x=weight(8, 32), indices=i, axis=0)
        total = mb.add(x=mb.reduce_sum(x=k2), y=mb.reduce_sum(x=v2))
        out = mb.add(x=mb.add(x=rows, y=total), y=mb.reduce_sum(x=m))
        for other in others:
            out = mb.add(x=out, y=mb.reduce_sum(x=other))
        return mb.reshape(x=out, shape=[1, 4, 32] if rank == 3 else [4, 32], name=logits)

    def make(folder: Path, bundle: Path) -> Path:
        names = [ids, mask, keys, values, *(["other"] if extra else [])]
        signature = ", ".join(names)
        named = eval(f"lambda {signature}: body({signature})", {"body": body})
        specs = [tensor(1, 4, dtype="int32"), half(1, 1, 4, 4), state(4, 32), state(4, 32)]
        specs += [half(1)] if extra else []
        program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(named)
        package = save(program, folder / "m.mlpackage")

        def change(spec):
            if name:
                spec.description.metadata.userDefined["co.huggingface.exporters.name"] = name
            if ranged:
                set_range(spec.description.input[0], (1, 1), (1, 64))

        return edit(package, change)

    return make


def set_range(feature, *sizes) -> None:
    ranges = feature.type.multiArrayType.shapeRange.sizeRanges
    for lower, upper in sizes:
        ranges.add(lowerBound=lower, upperBound=upper)


def set_enumerated(spec, feature: int, *shapes) -> None:
    """Give an input these shapes, and let the program take any."""
    described = spec.description.input[feature]
    for shape in shapes:
        described.type.multiArrayType.enumeratedShapes.shapes.add(shape=shape)
    function = spec.mlProgram.functions["main"]
    value = next(i for i in function.inputs if i.name == described.name)
    for dimension in value.type.tensorType.dimensions:
        dimension.unknown.variadic = False


def operation(spec, kind: str):
    """Return the first operation of a type in the main function."""
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return next(o for o in block.operations if o.type == kind)


def blocks(data, scale, **more):
    return mb.constexpr_blockwise_shift_scale(data=data, scale=scale.astype(np.float16), **more)


def codes(*shape, dtype="int8"):
    values = np.random.default_rng(3).integers(0, 15, shape)
    return values.astype(types.string_to_nptype(dtype))


def palette(*shape, bits=4, seed=0):
    lut = weight(*[1] * len(shape), 2**bits, 1, seed=seed)
    return mb.constexpr_lut_to_dense(indices=codes(*shape, dtype=f"uint{bits}"), lut=lut)
