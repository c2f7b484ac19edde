import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml.calibrate import input_moments
from macai.coreml.compress import Scheme
from macai.coreml.sensitivity import measure_sensitivity

SCHEMES = [Scheme.parse(name) for name in ("scaled2", "palette4-16", "int8", "int4-64")]


class Tiny(nn.Module):
    """A table that is the head too, and two layers of which one hardly matters."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(48, 32)
        self.layers = [nn.Linear(32, 32, bias=False) for _ in range(2)]

    def __call__(self, indices):
        x = self.table(indices) * 32**0.5
        x = x + self.layers[0](x) + 1e-3 * self.layers[1](x)
        return self.table.as_linear(x)


@pytest.fixture
def model():
    mx.random.seed(0)
    model = Tiny()
    mx.eval(model.parameters())
    return model


@pytest.fixture
def batches():
    return [mx.random.randint(0, 48, (2, 16), key=mx.random.key(n)) for n in range(2)]


@pytest.fixture
def moments(model, batches):
    return input_moments(model, batches)


def test_moments_are_the_mean_of_the_inputs_products(model, batches, moments):
    assert set(moments) == {"table.weight", "layers.0.weight", "layers.1.weight"}
    x = np.concatenate([np.array(model.table(b) * 32**0.5).reshape(-1, 32) for b in batches])
    np.testing.assert_allclose(moments["layers.0.weight"], x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(moments["layers.0.weight"], moments["layers.1.weight"])
    only = input_moments(model, batches, {"table.weight"})
    np.testing.assert_array_equal(only.pop("table.weight"), moments["table.weight"])
    assert not only


def test_what_matters_less_costs_less_and_more_bits_cost_less(model, batches, moments):
    before = {k: np.array(v.weight) for k, v in enumerate(model.layers)}
    told = []
    found = measure_sensitivity(
        model,
        batches,
        SCHEMES,
        moments=moments,
        progress=lambda done, total: told.append((done, total)),
    )
    two, four, eight = SCHEMES[:3]
    costs = found.divergences
    assert costs["layers.1.weight"][two] < 1e-3 * costs["layers.0.weight"][two]
    assert costs["layers.0.weight"][eight] < costs["layers.0.weight"][four]
    assert costs["layers.0.weight"][four] < costs["layers.0.weight"][two]
    assert SCHEMES[3] not in costs["layers.0.weight"]  # 32 columns are no block of 64
    assert told == [(1, 3), (2, 3), (3, 3)]
    for n, layer in enumerate(model.layers):
        np.testing.assert_array_equal(np.array(layer.weight), before[n])


def test_bits_go_where_they_matter_and_stay_within_the_mean(model, batches, moments):
    found = measure_sensitivity(model, batches, SCHEMES, moments=moments)
    chosen = found.choose(5.5)
    assert chosen["layers.1.weight"].bits < chosen["table.weight"].bits
    total = sum(found.bits[p][s] * found.sizes[p] for p, s in chosen.items())
    assert total <= 5.5 * sum(found.sizes.values())


def test_what_costs_are_computed_with_is_what_the_model_does(model, batches, moments):
    path, scheme = "layers.0.weight", Scheme.parse("scaled3")
    found = measure_sensitivity(model, batches, [scheme], moments={})
    weight = np.array(model.layers[0].weight)
    before = [model(b) for b in batches]
    model.layers[0].weight = mx.array(scheme.apply(weight).dense())
    measured = 0.0
    for b, was in zip(batches, before, strict=True):
        p, q = (nn.log_softmax(x, axis=-1) for x in (was, model(b)))
        measured += (mx.exp(p) * (p - q)).sum().item()
    assert found.divergences[path][scheme] == pytest.approx(measured / 64, rel=0.3)


def test_of_many_matrices_some_are_measured_and_the_others_like_them(model, batches, moments):
    few = measure_sensitivity(model, batches, SCHEMES[:1], moments=moments, most=1)
    assert set(few.divergences) == set(moments)
    assert few.divergences["layers.1.weight"][SCHEMES[0]] > 0
