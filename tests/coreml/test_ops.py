"""Every op of the table: what a package computes is what MLX does."""

import mlx.core as mx
import pytest

from macai.coreml.ops import OPS
from tests.coreml import channel_cases, picture_cases
from tests.coreml.cases import CASES
from tests.coreml.same import assert_same, lowered_graph, ops_of, together, traced_graph

# A pass makes Reshape of these: they are in the trace only.
RESHAPES = {"ExpandDims", "Flatten", "Squeeze", "Unflatten"}
# Only where sizes may differ from call to call are they in a program: see test_flexible.py.
SIZED = {"Arange", "Size"}
# What jumps, or is steep, where float16 rounds: compared in float32 only.
EXACT = {"DivMod", "FloorDivide", "Remainder", "Round"}


def test_every_op_has_a_case():
    others = {*channel_cases.CASES, *picture_cases.CASES, *picture_cases.ROWS}
    assert set(OPS) - SIZED == set(CASES) | others


@pytest.mark.parametrize("op", CASES)
def test_each_case_uses_its_op(op):
    for number, (fn, inputs) in enumerate(CASES[op]):
        graph = (traced_graph if op in RESHAPES else lowered_graph)(fn, *inputs)
        assert op in ops_of(graph), f"case {number}: {ops_of(graph)}"


@pytest.mark.parametrize("op", CASES)
def test_a_package_computes_what_mlx_does(op, tmp_path):
    fn, inputs = together(CASES[op])
    precisions = ("fp32",) if op in EXACT else ("fp32", "fp16")
    assert_same(fn, *inputs, path=tmp_path / "p.mlpackage", precisions=precisions)


def test_any_and_all_of_floats_see_what_float16_would_lose(tmp_path):
    x = mx.array([[0.0, 1e-9, 0.0], [0.0, 0.0, 0.0], [1e-9, 1e9, -1.0]])
    fn = lambda x: (mx.any(x, axis=1), mx.all(x, axis=1))  # noqa: E731
    assert_same(fn, x, path=tmp_path / "p.mlpackage")


def test_a_row_of_logits_too_long_for_float16_sums_is_normalised(tmp_path):
    fn = lambda x: mx.logsumexp(x, axis=-1)  # noqa: E731
    path = tmp_path / "p.mlpackage"
    assert_same(fn, mx.zeros((1, 70_000)), path=path, precisions=("fp16",))
