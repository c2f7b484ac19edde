import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml.calibrate import input_moments
from macai.coreml.gradients import squared_gradients
from tests.coreml.tiny_matrices import Tiny, divergence, texts, tiny


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def batches():
    return texts()


def test_gradients_are_those_of_what_is_added_to_the_output(model, batches):
    batch = batches[0]
    found = squared_gradients(model, [batch])
    # The same draw, by a formula of its own.
    _, key = mx.random.split(mx.random.key(0))
    drawn = mx.random.categorical(model(batch), key=key)

    def loss(read, inner, outer, logits):
        x = (model.table(batch) + read) * 32**0.5
        x = x + model.layers[0](x) + inner + 1e-3 * (model.layers[1](x) + outer)
        out = model.table.as_linear(x) + logits
        return nn.losses.cross_entropy(out, drawn, reduction="sum")

    zeros = [mx.zeros((2, 16, n)) for n in (32, 32, 32, 48)]
    squares = [np.array(g).reshape(32, -1) ** 2 for g in mx.grad(loss, (0, 1, 2, 3))(*zeros)]
    for path, square in zip(("layers.0.weight", "layers.1.weight"), squares[1:], strict=False):
        np.testing.assert_allclose(np.array(found[path].tokens[0]), square.mean(1), rtol=1e-4)
        np.testing.assert_allclose(found[path].rows, square.mean(0), rtol=1e-4)
        assert found[path].columns is None
        assert found[path].multiplies
    table = found["table.weight"]
    np.testing.assert_allclose(table.columns, squares[0].mean(0), rtol=1e-4)
    np.testing.assert_allclose(table.rows, squares[3].mean(0), rtol=1e-4, atol=1e-9)


def test_what_an_error_costs_is_what_the_model_does(model, batches):
    gradients = squared_gradients(model, batches)
    moments = input_moments(model, batches, gradients)
    before = [model(batch) for batch in batches]
    for number, size in enumerate((0.03, 3.0)):
        layer, path = model.layers[number], f"layers.{number}.weight"
        original = layer.weight
        error = np.random.default_rng(number).normal(0, size, (32, 32)).astype(np.float32)
        expected = np.einsum("ij,ij->", error @ moments[path], error) / 2
        layer.weight = original + mx.array(error)
        measured = divergence(model, batches, before)
        layer.weight = original
        assert expected == pytest.approx(measured, rel=0.25)


def test_a_token_that_nobody_reads_does_not_count(batches):
    class Deaf(Tiny):
        def __call__(self, indices):
            x = self.table(indices)
            y = self.layers[0](x)
            return self.table.as_linear(mx.concatenate([x[:, :1], y[:, 1:]], axis=1))

    model = Deaf()
    gradients = squared_gradients(model, batches[:1])
    tokens = np.array(gradients["layers.0.weight"].tokens[0]).reshape(2, 16)
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, 1:] > 0).all()
    assert not gradients["layers.1.weight"].multiplies
    x = np.array(model.table(batches[0]))[:, 1:]
    moments = input_moments(model, batches[:1], gradients)["layers.0.weight"]
    np.testing.assert_allclose(
        moments, np.einsum("bt,bti,btj->ij", tokens[:, 1:], x, x) / 32, rtol=1e-4, atol=1e-8
    )


def test_a_layer_that_is_used_twice_counts_for_both(batches):
    class Twice(Tiny):
        def __call__(self, indices):
            x = self.table(indices)
            return self.table.as_linear(self.layers[0](nn.relu(self.layers[0](x))))

    model = Twice()
    gradients = squared_gradients(model, batches[:1])
    assert gradients["layers.0.weight"].tokens[0].shape == (32,)
    assert input_moments(model, batches[:1], gradients)["layers.0.weight"].shape == (32, 32)


def test_the_same_text_gives_the_same_gradients_and_told_is_how_far_it_is(model, batches):
    told = []
    one, two = (
        squared_gradients(model, batches[:2], lambda done, total: told.append((done, total)))
        for _ in range(2)
    )
    assert told == [(1, 2), (2, 2)] * 2
    for path in one:
        np.testing.assert_array_equal(one[path].rows, two[path].rows)
