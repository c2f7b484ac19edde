import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml import ExportFunction, Settings, export_functions
from macai.coreml.compress import Compression, Scheme
from macai.errors import UsageError
from macai.mil import open_package

NAMES = ["int8", "int4-32", "int4-64", "uint4-32", "uint4-64"]
NAMES += [f"palette{bits}" for bits in (1, 2, 3, 4, 6, 8)] + ["palette4-16", "palette6-32"]


class Tiny(nn.Module):
    """A table that is the head too, a layer, a norm."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 128)
        self.layer = nn.Linear(128, 128)
        self.norm = nn.LayerNorm(128)

    def __call__(self, indices):
        return self.table.as_linear(self.norm(self.layer(self.table(indices))))


def tiny():
    mx.random.seed(0)
    model = Tiny()
    mx.eval(model.parameters())
    return model


def exported(model, compression, path, precision="fp32", lengths=(5,)):
    functions = {
        ("main" if n == 0 else f"f{n}"): ExportFunction(
            fn=model,
            inputs={"indices": mx.zeros((length,), mx.int32)},
            weights=model,
            settings=Settings(precision=precision, compress=compression),
        )
        for n, length in enumerate(lengths)
    }
    export_functions(functions, path)
    return open_package(path)


def normal(*shape, seed=0):
    return (0.05 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def relative_error(stored, weight):
    return np.square(stored.dense() - weight).mean() / np.square(weight).mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_package_computes_with_what_was_stored_and_is_as_large_as_said(name, tmp_path):
    model, compression = tiny(), Compression(default=Scheme.parse(name))
    package = exported(model, compression, tmp_path / "a.mlpackage")
    assert set(compression.outcomes) == {"table.weight", "layer.weight"}
    indices = np.array([0, 63, 7, 7, 12], dtype=np.int32)
    result = package.functions["main"].run({"indices": indices}).outputs["output"]
    for module in (model.table, model.layer):
        path = "table.weight" if module is model.table else "layer.weight"
        dense = compression(path, np.array(module.weight)).dense()
        module.weight = mx.array(dense)
    expected = np.array(model(mx.array(indices)))
    np.testing.assert_allclose(result, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_weights_take_what_was_computed(name, tmp_path):
    compression = Compression(default=Scheme.parse(name))
    package = exported(tiny(), compression, tmp_path / "a.mlpackage", "fp16")
    said = sum(outcome.bytes for outcome in compression.outcomes.values())
    small = 2 * 3 * 128  # a bias and the norm's two; each array has a header and is padded to 64
    assert 0 <= package.weight_bytes - said - small < 14 * 128


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_a_scheme_is_that_of_what_it_stores(name):
    scheme = Scheme.parse(name)
    assert str(Scheme.parse(str(scheme))) == str(scheme)
    assert scheme.apply(normal(32, 128)).size_bytes() == scheme.size_bytes((32, 128))


def test_functions_share_a_compressed_weight(tmp_path):
    sizes = []
    for lengths in ((5,), (5, 6)):
        compression = Compression(default=Scheme.parse("palette4-16"))
        path = tmp_path / f"{len(lengths)}.mlpackage"
        sizes.append(exported(tiny(), compression, path, "fp16", lengths).weight_bytes)
    assert sizes[1] - sizes[0] < 512


def test_what_is_left_as_it_is_has_a_reason():
    compression = Compression(
        default=Scheme.parse("int4-32"),
        schemes={"kept": None, "rows": Scheme.parse("palette4-16")},
        least_elements=1000,
    )
    weight = normal(40, 40)
    assert compression("columns", weight) is None
    assert compression("rows", weight) is None
    assert compression("kept", weight) is None
    assert compression("small", normal(4, 32)) is None
    assert compression("nan", np.full((40, 64), np.nan, np.float32)) is None
    assert compression("large", np.full((40, 64), 1e5, np.float32)) is None
    assert compression("fine", normal(40, 64)) is not None
    assert compression.skipped() == {
        "columns": "40 columns are no multiple of 32",
        "rows": "40 rows are no multiple of 16",
        "small": "128 elements, fewer than 1000",
        "nan": "values that are not finite",
        "large": "values up to 100000, beyond float16",
    }


def test_an_unknown_scheme_is_refused():
    for name in ("int5", "palette5", "int4-0", "", "int8 "):
        with pytest.raises(UsageError, match="unknown weight compression"):
            Scheme.parse(name)


@pytest.mark.parametrize(("name", "most"), [("int4-32", 0.0073), ("uint4-32", 0.0068)])
def test_scales_are_better_than_the_extremes_alone(name, most):
    weight = normal(64, 256)
    blocks = weight.reshape(64, 8, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 7
    naive = np.square(np.clip(np.rint(blocks / scale), -8, 7) * scale - blocks).mean()
    error = relative_error(Scheme.parse(name).apply(weight), weight)
    assert error < most < naive / np.square(weight).mean()


@pytest.mark.parametrize("name", ["int8", "int4-32", "uint4-32", "palette4", "palette4-16"])
def test_zeros_stay_zeros(name):
    weight = normal(32, 64)
    weight[:, 32:] = 0
    stored = Scheme.parse(name).apply(weight)
    assert np.isfinite(stored.dense()).all()
    assert np.abs(stored.dense()[:, 32:]).max() < (1e-2 if name.startswith("p") else 1e-12)
    assert not Scheme.parse(name).apply(np.zeros_like(weight)).dense().any()


@pytest.mark.parametrize("name", ["int4-32", "uint4-32", "palette3", "palette4-16"])
def test_feeding_errors_back_lowers_the_error_of_the_output(name):
    rng = np.random.default_rng(1)
    weight = normal(32, 96)
    inputs = rng.standard_normal((500, 24)) @ rng.standard_normal((24, 96))
    inputs += 0.3 * rng.standard_normal((500, 96))
    moments = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    scheme, errors = Scheme.parse(name), []
    for given in (None, moments):
        moved = inputs @ (scheme.apply(weight, given).dense() - weight).T
        errors.append(float(np.square(moved).mean()))
    assert errors[1] < 0.6 * errors[0]


def test_inputs_that_never_come_do_no_harm():
    weight, moments = normal(32, 64), np.diag(np.repeat([1.0, 0.0], 32)).astype(np.float32)
    for name in ("int4-32", "palette4-16"):
        for h in (moments, np.zeros_like(moments)):
            assert relative_error(Scheme.parse(name).apply(weight, h), weight) < 0.2
