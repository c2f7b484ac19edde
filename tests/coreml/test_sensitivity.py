import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml.calibrate import input_moments
from macai.coreml.compress import Scheme
from macai.coreml.gptq import Inputs
from macai.coreml.gradients import squared_gradients
from macai.coreml.sensitivity import expect_divergences
from tests.coreml.tiny_matrices import Tiny, divergence, texts, tiny

SCHEMES = [Scheme.parse(name) for name in ("scaled2", "palette4-16", "int8", "int4-64")]


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def batches():
    return texts()


@pytest.fixture
def gradients(model, batches):
    return squared_gradients(model, batches)


def test_what_matters_less_costs_less_and_more_bits_cost_less(model, batches, gradients):
    told = []
    found = expect_divergences(
        model, batches, gradients, SCHEMES, progress=lambda done, total: told.append((done, total))
    )
    two, four, eight = SCHEMES[:3]
    costs = found.divergences
    assert costs["layers.1.weight"][two] < 1e-3 * costs["layers.0.weight"][two]
    assert costs["layers.0.weight"][eight] < costs["layers.0.weight"][four]
    assert costs["layers.0.weight"][four] < costs["layers.0.weight"][two]
    assert SCHEMES[3] not in costs["layers.0.weight"]  # 32 columns are no block of 64
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_bits_go_where_they_matter_and_stay_within_the_mean(model, batches, gradients):
    found = expect_divergences(model, batches, gradients, SCHEMES)
    chosen = found.choose(5.5)
    assert chosen["layers.1.weight"].bits < chosen["table.weight"].bits
    total = sum(found.bits[p][s] * found.sizes[p] for p, s in chosen.items())
    assert total <= 5.5 * sum(found.sizes.values())


def test_what_is_expected_of_feedback_is_what_the_model_then_does(model, batches, gradients):
    path, scheme = "layers.0.weight", Scheme.parse("scaled3")
    expected = expect_divergences(model, batches, gradients, [scheme]).divergences[path][scheme]
    before = [model(batch) for batch in batches]
    weight = np.array(model.layers[0].weight)
    stored = scheme.apply(weight, Inputs(input_moments(model, batches, gradients)[path]))
    model.layers[0].weight = mx.array(stored.dense())
    assert expected == pytest.approx(divergence(model, batches, before), rel=0.5)


def test_a_table_that_is_only_read_costs_what_reading_it_does(batches):
    class Read(Tiny):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(32, 48, bias=False)

        def __call__(self, indices):
            return self.head(self.table(indices))

    mx.random.seed(0)
    model, scheme = Read(), Scheme.parse("scaled3")
    gradients = squared_gradients(model, batches)
    assert "table.weight" not in input_moments(model, batches, gradients)
    found = expect_divergences(model, batches, gradients, [scheme])
    before = [model(batch) for batch in batches]
    model.table.weight = mx.array(scheme.apply(np.array(model.table.weight)).dense())
    measured = divergence(model, batches, before)
    assert found.divergences["table.weight"][scheme] == pytest.approx(measured, rel=0.3)


def test_what_feedback_saves_is_taken_from_text_it_does_not_know():
    class Wide(nn.Module):
        """More inputs than there are tokens: feedback can make all errors on them vanish."""

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(2000, 256)
            self.head = nn.Linear(256, 16, bias=False)

        def __call__(self, indices):
            return self.head(self.table(indices) * 4)

    mx.random.seed(0)
    model, scheme, path = Wide(), Scheme.parse("scaled3"), "head.weight"
    batches = [mx.random.randint(0, 2000, (1, 32), key=mx.random.key(n)) for n in range(36)]
    known, others = batches[:4], batches[4:]
    gradients = squared_gradients(model, known)
    expected = expect_divergences(model, known, gradients, [scheme]).divergences[path][scheme]
    moments = input_moments(model, known, gradients)
    before = [[model(batch) for batch in some] for some in (known, others)]
    stored = scheme.apply(np.array(model.head.weight), Inputs(moments[path]))
    model.head.weight = mx.array(stored.dense())
    on_known, on_others = (
        divergence(model, some, was) for some, was in zip((known, others), before, strict=True)
    )
    assert on_known < 0.7 * on_others
    assert expected == pytest.approx(on_others, rel=0.3)
