import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml.calibrate import input_moments
from macai.coreml.compress import Scheme
from macai.coreml.sensitivity import measure_sensitivity

SCHEMES = [Scheme.parse(name) for name in ("palette2", "palette4-16", "int8", "int4-64")]


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


def test_moments_are_the_mean_of_the_inputs_products(model, batches):
    moments = input_moments(model, batches)
    assert set(moments) == {"table.weight", "layers.0.weight", "layers.1.weight"}
    x = np.concatenate([np.array(model.table(b) * 32**0.5).reshape(-1, 32) for b in batches])
    np.testing.assert_allclose(moments["layers.0.weight"], x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(moments["layers.0.weight"], moments["layers.1.weight"])


def test_what_matters_less_costs_less_and_more_bits_cost_less(model, batches):
    before = {k: np.array(v.weight) for k, v in enumerate(model.layers)}
    told = []
    found = measure_sensitivity(
        model, batches, SCHEMES, progress=lambda done, total: told.append((done, total))
    )
    two, four, eight = SCHEMES[:3]
    costs = found.divergences
    assert costs["layers.1.weight"][two] < 1e-3 * costs["layers.0.weight"][two]
    assert costs["layers.0.weight"][eight] < costs["layers.0.weight"][four]
    assert costs["layers.0.weight"][four] < costs["layers.0.weight"][two]
    assert SCHEMES[3] not in costs["layers.0.weight"]  # 32 columns are no block of 64
    assert found.measured == 9
    assert told[-1] == (9, 9)
    for n, layer in enumerate(model.layers):
        np.testing.assert_array_equal(np.array(layer.weight), before[n])


def test_bits_go_where_they_matter_and_stay_within_the_mean(model, batches):
    found = measure_sensitivity(model, batches, SCHEMES)
    chosen = found.choose(5.5)
    assert chosen["layers.1.weight"].bits < chosen["table.weight"].bits
    total = sum(found.bits[p][s] * found.sizes[p] for p, s in chosen.items())
    assert total <= 5.5 * sum(found.sizes.values())


def test_what_the_budget_leaves_out_is_estimated(model, batches):
    moments = input_moments(model, batches)
    whole = measure_sensitivity(model, batches, SCHEMES, moments=moments)
    none = measure_sensitivity(model, batches, SCHEMES, moments=moments, budget_seconds=-1)
    assert (whole.measured, none.measured) == (9, 0)
    assert {p: set(c) for p, c in none.divergences.items()} == {
        p: set(c) for p, c in whole.divergences.items()
    }
