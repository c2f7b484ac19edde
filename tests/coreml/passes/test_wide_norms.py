import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml.api import ExportFunction, export_functions, graph_of
from macai.coreml.cast import cast_weights
from macai.coreml.lower import Settings
from macai.coreml.passes import PASSES
from macai.coreml.passes.wide_norms import wide_norms
from macai.mil import open_package


class End(nn.Module):
    """The end of a U-Net, of NCHW; `shares` gives what the norm gave, too."""

    def __init__(self, *, shares=False, wide=True):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 1)
        self.norm = nn.GroupNorm(2, 8, pytorch_compatible=True)
        self.last = nn.Conv2d(8, 4, 3, padding=1)
        self.norm.weight = mx.random.normal((8,))
        self._shares, self._wide = shares, wide

    def __call__(self, x):
        normal = self.norm(self.first(x.transpose(0, 2, 3, 1)))
        result = self.last(nn.silu(normal)).transpose(0, 3, 1, 2)
        result = result.astype(mx.float32) if self._wide else result
        return [result, normal] if self._shares else [result]


def made(net, *passes, precision="fp16"):
    cast_weights(net, mx.float16 if precision == "fp16" else mx.float32)
    x = mx.zeros((1, 4, 6, 6), mx.float16 if precision == "fp16" else mx.float32)
    return ExportFunction(
        fn=net,
        inputs={"x": x},
        outputs=["y", "z"][: len(net(x))],
        weights=net,
        settings=Settings(precision=precision),
        passes=[*PASSES, *passes],
    )


def types(graph):
    """Operation and type of its result, in order."""
    return [(node.op, node.outputs[0].dtype) for node in graph.nodes]


def test_a_norm_what_follows_it_and_the_last_product_are_float32():
    assert types(graph_of(made(End(), wide_norms))) == [
        ("PictureConvolution", "float16"),
        ("PictureGroupNorm", "float32"),
        ("SiLU", "float32"),
        ("PictureConvolution", "float32"),
    ]


def test_before_another_product_it_is_rounded_once():
    kinds = types(graph_of(made(End(wide=False), wide_norms)))
    assert kinds[1:5] == [
        ("PictureGroupNorm", "float32"),
        ("SiLU", "float32"),
        ("AsType", "float16"),
        ("PictureConvolution", "float16"),
    ]


def test_what_is_read_twice_ends_the_chain_and_float32_stays_as_it_is():
    kinds = types(graph_of(made(End(shares=True), wide_norms)))
    assert kinds[1:4] == [
        ("PictureGroupNorm", "float32"), ("AsType", "float16"), ("SiLU", "float16"),
    ]  # fmt: skip
    plain = End()
    before, after = (types(graph_of(made(plain, *p, precision="fp32"))) for p in ((), [wide_norms]))
    assert before == after


@pytest.mark.parametrize("shares", [False, True])
def test_it_computes_the_same_and_rounds_less(shares, tmp_path):
    mx.random.seed(0)
    net = End(shares=shares)
    x = mx.random.normal((1, 4, 6, 6)).astype(mx.float16)
    errors = []
    for name, passes in {"plain": [], "wide": [wide_norms]}.items():
        function = made(net, *passes)
        export_functions({"main": function}, tmp_path / f"{name}.mlpackage", target="iOS16")
        package = open_package(tmp_path / f"{name}.mlpackage").functions["main"]
        exact = package.run({"x": np.array(x)}).outputs["y"]
        rounded = package.run({"x": np.array(x)}, precision="fp16").outputs["y"]
        errors.append(np.square(rounded - exact).mean())
        net.update(nn.utils.tree_map(lambda w: w.astype(mx.float32), net.parameters()))
        wanted = np.array(net(x.astype(mx.float32))[0])
        assert np.abs(exact - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert shares or errors[1] < errors[0]  # what is shared is rounded as before
