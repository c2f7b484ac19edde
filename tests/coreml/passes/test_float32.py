import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.passes.float32 import keep_float32
from tests.coreml.same import as_numpy, lowered_graph, relative_error, run, save


def timestep(t):
    half = mx.exp(-math.log(10000) * mx.arange(0, 16) / 16)
    angles = t[:, None] * half[None]
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def test_a_timestep_embedding_keeps_its_angles(tmp_path):
    t = mx.array([961.0, 500.0, 1.0])
    package = save(timestep, [t], tmp_path / "p.mlpackage")
    got = run(package, t, precision="fp16")[0]
    assert relative_error(got, as_numpy(timestep(t))) < 1e-3


def test_what_leads_to_an_angle_is_kept_and_nothing_behind_a_product_of_matrices():
    layer = nn.Linear(16, 16)

    def fn(x):
        h = layer(x)
        return mx.sin(h * 3) + x

    graph = lowered_graph(fn, mx.ones((2, 16)), weights=layer)
    kept = keep_float32(graph)
    by_op = {node.op: node for node in graph.nodes}
    assert by_op["Multiply"].outputs[0].name in kept
    assert by_op["Sin"].outputs[0].name in kept
    assert by_op["Linear"].outputs[0].name not in kept
    assert graph.inputs[0].name not in kept
    assert by_op["Add"].outputs[0].name not in kept


def test_a_graph_without_angles_keeps_nothing():
    assert keep_float32(lowered_graph(nn.gelu, mx.ones(3))) == frozenset()


def test_an_input_of_float16_stays_one_and_the_angle_of_it_is_exact(tmp_path):
    t = mx.array([961.0, 500.0], dtype=mx.float16)
    package = save(lambda t: timestep(t.astype(mx.float32)), [t], tmp_path / "p.mlpackage")
    assert package.functions["main"].inputs["x0"].dtype == "fp16"
    got = run(package, t, precision="fp16")[0]
    assert relative_error(got, as_numpy(timestep(t.astype(mx.float32)))) < 1e-3


def test_a_norm_of_large_activations_does_not_overflow_in_float16(tmp_path):
    x = mx.array(np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)) * 9000
    x = x.astype(mx.float16).astype(mx.float32)
    assert float(mx.abs(x).max().item()) > 19_000
    for number, norm in enumerate((nn.RMSNorm(64), nn.LayerNorm(64))):
        package = save(norm, [x], tmp_path / f"{number}.mlpackage")
        result = package.functions["main"].run({"x0": as_numpy(x)}, precision="fp16")
        assert result.overflows == []
        assert relative_error(result.outputs["y0"], as_numpy(norm(x))) < 2e-3


def test_a_mean_of_many_large_values_does_not_overflow_in_float16(tmp_path):
    x = mx.full((1, 4096), 60.0)
    fn = lambda x: mx.mean(x, axis=-1) + mx.var(x + 1, axis=-1)  # noqa: E731
    package = save(fn, [x], tmp_path / "p.mlpackage")
    result = package.functions["main"].run({"x0": as_numpy(x)}, precision="fp16")
    assert result.overflows == []
    assert result.outputs["y0"].tolist() == [60.0]
