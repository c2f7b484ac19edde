import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml import ExportFunction, Settings, export_functions
from macai.coreml.compress import Compression, Scheme
from macai.coreml.gptq import Inputs
from macai.errors import UsageError
from macai.mil import open_package

NAMES = ["int8", "int4-32", "int4-64", "uint4-32", "uint4-64", "affine4-32", "scaled4", "scaled6"]
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
    for name in ("int5", "palette5", "int4-0", "", "int8 ", "scaled5", "scaled4-16"):
        with pytest.raises(UsageError, match="unknown weight compression"):
            Scheme.parse(name)


@pytest.mark.parametrize(
    ("name", "most"), [("int4-32", 0.0073), ("uint4-32", 0.0068), ("affine4-32", 0.0063)]
)
def test_scales_are_better_than_the_extremes_alone(name, most):
    weight = normal(64, 256)
    blocks = weight.reshape(64, 8, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 7
    naive = np.square(np.clip(np.rint(blocks / scale), -8, 7) * scale - blocks).mean()
    error = relative_error(Scheme.parse(name).apply(weight), weight)
    assert error < most < naive / np.square(weight).mean()


@pytest.mark.parametrize(
    "name", ["int8", "int4-32", "uint4-32", "palette4", "palette4-16", "affine4-32", "scaled4"]
)
def test_zeros_stay_zeros(name):
    weight = normal(32, 64)
    weight[:, 32:] = 0
    stored = Scheme.parse(name).apply(weight)
    assert np.isfinite(stored.dense()).all()
    assert np.abs(stored.dense()[:, 32:]).max() < (1e-2 if name.startswith(("p", "s")) else 1e-12)
    assert not Scheme.parse(name).apply(np.zeros_like(weight)).dense().any()


FED_BACK = ["int4-32", "uint4-32", "affine4-32", "palette3", "palette4-16", "scaled4"]


def correlated(rng, *, count=500):
    inputs = rng.standard_normal((count, 24)) @ rng.standard_normal((24, 96))
    return inputs + 0.3 * rng.standard_normal((count, 96))


def moments(inputs, others=None):
    others = inputs if others is None else others
    return (others.T @ inputs / len(inputs)).astype(np.float32)


@pytest.mark.parametrize("name", FED_BACK)
def test_feeding_errors_back_lowers_the_error_of_the_output(name):
    weight, inputs = normal(32, 96), correlated(np.random.default_rng(1))
    scheme, errors = Scheme.parse(name), []
    for given in (None, Inputs(moments(inputs))):
        moved = inputs @ (scheme.apply(weight, given).dense() - weight).T
        errors.append(float(np.square(moved).mean()))
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("name", FED_BACK)
def test_what_rounding_before_did_to_the_inputs_is_made_up_for(name):
    rng = np.random.default_rng(1)
    weight, wanted = normal(32, 96), correlated(rng)
    inputs = wanted + 0.4 * wanted @ rng.standard_normal((96, 96)) / 96**0.5
    errors = []
    for given in (Inputs(moments(inputs)), Inputs(moments(inputs), moments(inputs, wanted))):
        compression = Compression(default=Scheme.parse(name))
        dense = compression("layer.weight", weight, given).dense()
        errors.append(float(np.square(inputs @ dense.T - wanted @ weight.T).mean()))
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("group", [32, 64])
def test_what_mlx_has_quantised_is_stored_as_it_is_in_blocks_alike(group):
    words, scales, biases = mx.quantize(mx.array(normal(64, 256)), group_size=group, bits=4)
    weight = np.array(mx.dequantize(words, scales, biases, group_size=group, bits=4))
    weight = weight.astype(np.float16).astype(np.float32)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((500, 256))
    # Inputs that would have it changed, if it were not exact already.
    given = Inputs(moments(inputs), moments(inputs, inputs + 0.3 * rng.standard_normal((500, 256))))
    for name, exact in ((f"affine4-{group}", True), ("uint4-32", False), ("scaled4", False)):
        compression = Compression(default=Scheme.parse(name))
        error = relative_error(compression("layer.weight", weight, given), weight)
        assert (error < 1e-6) == exact, (name, error)


def test_inputs_that_never_come_do_no_harm():
    weight, never = normal(32, 64), np.diag(np.repeat([1.0, 0.0], 32)).astype(np.float32)
    for name in ("int4-32", "palette4-16", "scaled4", "affine4-32"):
        for h in (never, np.zeros_like(never)):
            assert relative_error(Scheme.parse(name).apply(weight, Inputs(h)), weight) < 0.2


def test_scales_of_rows_serve_rows_of_different_size():
    weight = normal(32, 256) * np.geomspace(0.01, 1, 32, dtype=np.float32)[:, None]
    for bits in (3, 4):
        scaled, shared = (Scheme.parse(f"{form}{bits}") for form in ("scaled", "palette"))
        error = np.square(scaled.apply(weight).dense() - weight).mean(1) / np.square(weight).mean(1)
        assert error.max() < (0.06 if bits == 3 else 0.02)
        shared_error = np.square(shared.apply(weight).dense() - weight).mean(1)
        assert (shared_error / np.square(weight).mean(1)).max() > 10 * error.max()
