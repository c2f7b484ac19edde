from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml.api import ExportFunction, export_functions, graph_of
from macai.coreml.lower import Settings
from macai.coreml.passes import PASSES
from macai.coreml.passes.pictures_first import pictures_and_rows_first, pictures_first
from macai.diffusion.models.resnet import ResnetBlock2D
from macai.mil import open_package
from tests.coreml.picture_cases import CASES, ROWS, Picture, Rows, attend
from tests.coreml.same import (
    TOLERANCE,
    as_numpy,
    assert_same,
    lowered_graph,
    ops_of,
    relative_error,
    results_of,
    run,
)


def with_rows(chunk=None):
    """The passes with the one that also turns rows."""
    own = partial(pictures_and_rows_first, chunk=chunk)
    return [own if rewrite is pictures_first else rewrite for rewrite in PASSES]


def made(fn, inputs, chunk=None, precision="fp16"):
    return ExportFunction(
        fn=fn,
        inputs={f"x{n}": array for n, array in enumerate(inputs)},
        outputs=[f"y{n}" for n in range(len(results_of(fn, inputs)))],
        weights=fn if isinstance(fn, nn.Module) else None,
        settings=Settings(precision=precision, fused_attention=False),
        passes=with_rows(chunk),
    )


def saved(fn, inputs, path, **options):
    export_functions({"main": made(fn, inputs, **options)}, path, target="iOS16")
    return open_package(path)


@pytest.mark.parametrize("op", CASES)
def test_what_is_of_pictures_computes_what_mlx_does(op, tmp_path):
    for number, (fn, inputs) in enumerate(CASES[op]):
        assert op in ops_of(lowered_graph(fn, *inputs))
        path = tmp_path / f"{number}.mlpackage"
        assert_same(fn, *inputs, path=path, precisions=("fp32", "fp16"))


@pytest.mark.parametrize("op", ROWS)
def test_what_is_of_rows_computes_what_mlx_does(op, tmp_path):
    for number, (fn, inputs) in enumerate(ROWS[op]):
        assert op in ops_of(graph_of(made(fn, inputs)))
        wanted = [as_numpy(a) for a in results_of(fn, inputs)]
        for written, read in TOLERANCE:
            path = tmp_path / f"{number}-{written}-{read}.mlpackage"
            got = run(saved(fn, inputs, path, precision=written), *inputs, precision=read)
            errors = [relative_error(g, w) for g, w in zip(got, wanted, strict=True)]
            assert max(errors) <= TOLERANCE[written, read], (written, read)


def resnet():
    return ResnetBlock2D(6, 8, temb_channels=4, groups=2, eps=1e-5)


def test_nothing_is_turned_between_the_convolutions_of_a_block(tmp_path):
    block = resnet()
    x, time = mx.random.normal((1, 5, 4, 6)), mx.random.normal((1, 4))

    def fn(x, time):
        return block(x.transpose(0, 2, 3, 1), time).transpose(0, 3, 1, 2)

    ops = ops_of(lowered_graph(fn, x.transpose(0, 3, 1, 2), time, weights=block))
    assert ops.count("PictureConvolution") == 3
    assert ops.count("PictureGroupNorm") == 2
    assert "Transpose" not in ops


def test_what_is_added_to_each_channel_of_a_convolution_is_its_bias(tmp_path):
    layer = nn.Conv2d(3, 4, 3)
    layer.bias = mx.random.normal((4,))
    fn = lambda x: layer(x)  # noqa: E731
    graph = lowered_graph(fn, mx.zeros((1, 5, 5, 3)), weights=layer)
    (node,) = [n for n in graph.nodes if n.op == "PictureConvolution"]
    assert len(node.inputs) == 3
    assert "Add" not in ops_of(graph)


def test_a_bias_stays_where_the_convolution_is_read_twice(tmp_path):
    layer = nn.Conv2d(3, 4, 3, bias=False)
    bias = mx.random.normal((4,))
    fn = lambda x: (layer(x) + bias) * layer(x)  # noqa: E731
    x = mx.random.normal((1, 5, 5, 3))
    assert_same(fn, x, path=tmp_path / "p.mlpackage", precisions=("fp32",))

    def twice(x):
        y = layer(x)
        return (y + bias) * y

    assert "Add" in ops_of(lowered_graph(twice, x, weights=layer))
    assert_same(twice, x, path=tmp_path / "q.mlpackage", precisions=("fp32",))


def test_a_graph_without_convolutions_is_left_alone():
    fn = lambda x: nn.silu(x.transpose(0, 2, 3, 1))  # noqa: E731
    assert ops_of(lowered_graph(fn, mx.zeros((1, 2, 3, 4)))) == ["Transpose", "SiLU"]


def test_padding_on_two_sides_and_parts_along_channels_are_turned(tmp_path):
    layer = nn.Conv2d(4, 4, 3, stride=2)

    def fn(x):
        first, second = mx.split(layer(mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])), 2, axis=-1)
        return mx.concatenate([nn.silu(second), first, first], axis=-1)

    x = mx.random.normal((1, 6, 6, 4))
    assert_same(fn, x, path=tmp_path / "p.mlpackage", precisions=("fp32", "fp16"))
    between = ops_of(lowered_graph(fn, x, weights=layer))
    assert between.count("Transpose") == 2  # at the borders


def test_a_value_that_is_read_both_ways_is_turned_once(tmp_path):
    layer = nn.Conv2d(4, 4, 1)

    def fn(x):
        y = layer(x)
        return y.sum(axis=-1), y.max(axis=2), layer(y)

    x = mx.random.normal((1, 3, 5, 4))
    assert_same(fn, x, path=tmp_path / "p.mlpackage")
    assert ops_of(lowered_graph(fn, x, weights=layer)).count("Transpose") == 3


@pytest.mark.parametrize(("chunk", "einsums"), [(None, 4), (8, 12), (24, 4)])
def test_attention_is_a_head_and_a_chunk_at_a_time(chunk, einsums, tmp_path):
    fn, x = Rows(8, attend()), mx.random.normal((1, 4, 5, 8))
    package = saved(fn, [x], tmp_path / "p.mlpackage", chunk=chunk)
    types = [op.type for op in package.functions["main"].operations]
    assert types.count("einsum") == einsums  # two heads, twice
    assert types.count("transpose") == 2  # of the input, and of all keys
    got = run(package, x)[0]
    assert relative_error(got, as_numpy(fn(x))) < 4e-3


def test_a_mean_of_a_picture_in_float16_is_taken_side_by_side(tmp_path):
    fn, x = Picture(4, nn.GroupNorm(2, 4, pytorch_compatible=True)), mx.random.normal((1, 8, 8, 4))
    package = saved(fn, [x], tmp_path / "p.mlpackage")
    operations = [op for op in package.functions["main"].operations if op.type == "reduce_mean"]
    assert len(operations) == 4
    assert {t.dtype.name for op in operations for t in op.outputs.values()} == {"fp16"}
    got = run(package, x, precision="fp16")[0]
    assert relative_error(got, np.array(fn(x))) < 1e-2
