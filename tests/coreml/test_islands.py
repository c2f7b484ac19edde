"""Values kept in float32: the same function, typed as coremltools types it."""

from pathlib import Path

import coremltools as ct
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from coremltools.converters.mil.frontend.milproto.load import load

from macai.bench.architectures import LISTED, ROWS, build, config_of, package_agreement
from macai.coreml import export, export_functions
from macai.coreml.islands import widen
from macai.coreml.llm import llm_functions
from macai.errors import ExportError
from macai.mil import open_package
from tests.coreml.same import as_numpy


def halves_of(package):
    """The names of all values declared fp16 that are computed, by function."""
    return {
        name: frozenset(
            output
            for operation in function.operations
            if operation.type != "const" and not operation.type.startswith("constexpr")
            for output, type_ in operation.outputs.items()
            if type_.dtype.name == "fp16"
        )
        for name, function in package.functions.items()
    }


def read_by_coremltools(path: Path):
    """Have coremltools infer all types anew, and compare them with those declared."""
    spec = ct.utils.load_spec(str(path))
    weights = path / "Data/com.apple.CoreML/weights"
    return load(spec, spec.specificationVersion, file_weights_dir=str(weights))


@pytest.mark.parametrize(
    "architecture",
    [n if n == "llama" else pytest.param(n, marks=pytest.mark.slow) for n in LISTED],
)
def test_any_value_of_a_model_can_be_float32(architecture, tmp_path):
    model = build(config_of(architecture, LISTED[architecture]))
    path = tmp_path / "p.mlpackage"
    export_functions(llm_functions(model, context=64, prefill=(ROWS,)), path)
    before = package_agreement(model, open_package(path))
    wide = halves_of(open_package(path))
    peaks = {name: dict.fromkeys(values, 4e4) for name, values in wide.items()}
    counts = widen(path, peaks, wide)
    assert min(counts.values()) > 30
    read_by_coremltools(path)
    after = package_agreement(model, open_package(path))
    assert after.error == pytest.approx(before.error, rel=1e-2)  # of its weights in float16


class Loud(nn.Module):
    """A gated layer whose product is 1e7, and what is beyond float16 cancels."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)

    def __call__(self, x):
        h = nn.relu(self.up(1000 * x)) * self.up(1000 * x)
        y = self.down(h)
        return mx.tanh(y / (1 + mx.abs(y).max()))


@pytest.fixture
def loud(tmp_path):
    """A package that overflows, its input, what it should return, and how large values are."""
    mx.random.seed(0)
    net, x = Loud(), mx.random.normal((2, 8))
    path = tmp_path / "loud.mlpackage"
    export(net, {"x": x}, path)
    function, inputs = open_package(path).functions["main"], {"x": as_numpy(x)}
    peaks = {}
    function.run(inputs, peaks=peaks)
    assert function.run(inputs, precision="fp16").overflows
    return path, inputs, np.array(net(x)), peaks


def test_what_overflowed_does_not_any_more(loud):
    path, inputs, wanted, peaks = loud
    assert max(peaks.values()) > 1e6
    widen(path, {"main": peaks}, {"main": frozenset(n for n, p in peaks.items() if p > 3e4)})
    read_by_coremltools(path)
    result = open_package(path).functions["main"].run(inputs, precision="fp16")
    assert result.overflows == []
    np.testing.assert_allclose(result.outputs["output"], wanted, atol=4e-3)


def test_weights_stay_as_they_are(loud):
    path, _, _, peaks = loud
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    before = weights.read_bytes()
    widen(path, {"main": peaks}, {"main": frozenset(n for n, p in peaks.items() if p > 3e4)})
    assert weights.read_bytes() == before


def test_a_state_that_cannot_hold_a_value_is_refused(tmp_path):
    def count(x, total):
        total = total + x
        return total * 1.0, total

    path = tmp_path / "count.mlpackage"
    export(count, {"x": mx.zeros((4,))}, path, states={"total": mx.zeros((4,))})
    wide = halves_of(open_package(path))
    with pytest.raises(ExportError, match="200,000 are beyond float16, and a state holds"):
        widen(path, {"main": dict.fromkeys(wide["main"], 2e5)}, wide)
