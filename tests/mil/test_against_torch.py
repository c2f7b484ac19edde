"""The judge, judged: what Apple's converter makes of torch modules gives torch's numbers."""

import numpy as np
import pytest

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")

import coremltools as ct  # noqa: E402

from macai.mil import open_package  # noqa: E402
from tests.mil.packages import save_model  # noqa: E402
from tests.mil.torch_cases import Case, cases  # noqa: E402

# coremltools says so of every version of torch after 2.7, and torch of its own tracing.
pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore")]

CASES = {case.name: case for case in cases()}
PRECISIONS = {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}


def expected_outputs(module, inputs) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = module(*inputs)
    return [o.numpy() for o in (outputs if isinstance(outputs, tuple | list) else (outputs,))]


def convert(case: Case, path, *, target: str, precision: str):
    """Return torch's inputs and outputs, and the package."""
    torch.manual_seed(0)
    module = case.module().eval()
    inputs = case.inputs()
    expected = expected_outputs(module, inputs)
    is_script = isinstance(module, torch.jit.ScriptModule)
    traced = module if is_script else torch.jit.trace(module, inputs, check_trace=False)
    # Integers stay int32, floats are fp32 at the border of the model.
    types = [
        ct.TensorType(
            name=f"x{i}",
            shape=x.shape,
            dtype=np.int32 if x.dtype == torch.int32 else np.float32,
        )
        for i, x in enumerate(inputs)
    ]
    save_model(
        lambda: ct.convert(
            traced,
            inputs=types,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=PRECISIONS[precision],
            skip_model_load=True,
        ),
        path,
    )
    return {f"x{i}": x.numpy() for i, x in enumerate(inputs)}, expected, open_package(path)


def worst_error(outputs, expected) -> float:
    """Return the largest difference, relative to the largest value of each output."""
    worst = 0.0
    assert len(outputs) == len(expected)
    for got, want in zip(outputs, expected, strict=True):
        assert got.shape == (want.shape or (1,)) or got.shape == want.shape
        want64, got64 = want.astype(np.float64).reshape(got.shape), got.astype(np.float64)
        scale = max(float(np.abs(want64).max(initial=0)), 1e-6)
        worst = max(worst, float(np.abs(got64 - want64).max(initial=0)) / scale)
    return worst


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, target) for name, case in CASES.items() for target in case.targets],
)
def test_fp32_packages_give_torchs_numbers(tmp_path, record_property, name, target):
    case = CASES[name]
    inputs, expected, package = convert(
        case, tmp_path / "p.mlpackage", target=target, precision="fp32"
    )
    outputs = package.functions["main"].run(inputs).outputs
    error = worst_error(list(outputs.values()), expected)
    record_property("error", float(error))
    assert error <= case.tolerance


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.half_tolerance])
def test_fp16_packages_are_as_near_as_fp16_is(tmp_path, record_property, name):
    case = CASES[name]
    inputs, expected, package = convert(
        case, tmp_path / "p.mlpackage", target="iOS18", precision="fp16"
    )
    for precision in PRECISIONS:
        outputs = package.functions["main"].run(inputs, precision=precision).outputs
        error = worst_error(list(outputs.values()), expected)
        record_property(f"error_{precision}", error)
        assert error <= case.half_tolerance, precision
