import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.coreml.calibrate import input_moments
from macai.coreml.compress import Compression, Scheme
from macai.coreml.gptq import Inputs
from macai.coreml.gradients import squared_gradients
from macai.coreml.matrices import matrix_paths
from macai.coreml.sequential import round_model

SCHEME = Scheme.parse("scaled3")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(32)
        self.up = nn.Linear(32, 64, bias=False)
        self.gate = nn.Linear(32, 64, bias=False)
        self.down = nn.Linear(64, 32, bias=False)

    def __call__(self, x, factor, *, shift=None):
        y = self.norm(x)
        return x + factor * self.down(nn.silu(self.gate(y)) * self.up(y)) + shift


class Model(nn.Module):
    """Blocks with arguments beside their state, a table that is the head too."""

    def __init__(self, *, between=0.0):
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.layers = [Block() for _ in range(4)]
        self.norm = nn.RMSNorm(32)
        self.between = between

    def __call__(self, indices):
        x = self.table(indices)
        for number, layer in enumerate(self.layers):
            x = layer(x, 2.0, shift=0.1 * number)
            x = x + self.between if self.between else x
        return self.table.as_linear(self.norm(x))


def made(**options):
    mx.random.seed(0)
    model = Model(**options)
    mx.eval(model.parameters())
    return model


@pytest.fixture
def batches():
    return [mx.random.randint(0, 64, (1, 64), key=mx.random.key(n)) for n in range(8)]


def outputs(model, batches):
    return np.concatenate([np.array(model(batch)) for batch in batches])


def in_turn(model, batches, compression=None, *progress):
    compression = compression or Compression(default=SCHEME)
    round_model(model, batches, squared_gradients(model, batches), compression, *progress)


def at_once(model, batches):
    compression = Compression(default=SCHEME)
    moments = input_moments(model, batches, squared_gradients(model, batches))
    for path, module in matrix_paths(model).items():
        weight = np.array(module.weight.astype(mx.float16)).astype(np.float32)
        stored = compression(path, weight, Inputs(moments[path]))
        module.weight = mx.array(stored.dense())
    return compression


def test_what_earlier_blocks_lost_later_ones_make_up_for(batches):
    wanted, errors = outputs(made(), batches), []
    for how in (at_once, in_turn):
        model = made()
        how(model, batches)
        errors.append(float(np.square(outputs(model, batches) - wanted).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_a_model_has_what_is_stored_and_all_of_it_is(batches):
    model, compression, told = made(), Compression(default=SCHEME), []
    in_turn(model, batches, compression, lambda done, total: told.append((done, total)))
    assert told == [(n, 4) for n in (1, 2, 3, 4)]
    assert set(compression.outcomes) == set(matrix_paths(model))
    for path, module in matrix_paths(model).items():
        stored = compression(path, np.zeros((1, 1)))  # what was stored is not stored again
        np.testing.assert_array_equal(np.array(module.weight), stored.dense())


def test_the_same_text_gives_the_same_weights(batches):
    models = [made() for _ in range(2)]
    for model in models:
        in_turn(model, batches)
    for one, other in zip(*(matrix_paths(m).values() for m in models), strict=True):
        np.testing.assert_array_equal(np.array(one.weight), np.array(other.weight))


def test_blocks_that_are_no_chain_are_rounded_for_the_model_as_it_was(batches):
    model, other = made(between=1.0), made(between=1.0)
    in_turn(model, batches)
    at_once(other, batches)
    for one, two in zip(*(matrix_paths(m).values() for m in (model, other)), strict=True):
        np.testing.assert_array_equal(np.array(one.weight), np.array(two.weight))


def test_classes_are_as_they_were_when_a_block_fails(batches):
    model, call = made(), Block.__call__
    gradients = squared_gradients(model, batches)
    model.layers[2].down = None
    with pytest.raises(TypeError):
        round_model(model, batches, gradients, Compression(default=SCHEME))
    assert Block.__call__ is call
