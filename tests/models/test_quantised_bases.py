"""A base that stays quantised while it is trained on, as on a GPU: QLoRA and QDoRA."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.models.arrays import named_arrays
from macai.models.load import dequantise, load_model
from macai.train.gradient import Gradient
from macai.train.loss import _picked
from macai.train.optimizer import joined, make_optimizer, update
from tests.adapters import adapt
from tests.train.cases import batch_of, make_examples

BASES = [(bits, "affine") for bits in (2, 3, 4, 5, 6, 8)] + [(4, "mxfp4")]
EXAMPLES = make_examples((30, 12), (14, 5), (17, 6))
OPTIONS = {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}


def quantised(tiny_dir, bits, mode):
    loaded = load_model(tiny_dir)
    nn.quantize(loaded.model, group_size=32, bits=bits, mode=mode)
    return loaded


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(("bits", "mode"), BASES)
def test_the_gradient_on_a_quantised_base_is_that_on_the_numbers_its_bits_mean(
    tiny_dir, bits, mode, use_dora
):
    packed, plain = (quantised(tiny_dir, bits, mode) for _ in range(2))
    dequantise(plain.model)
    sums = []
    for loaded in (packed, plain):
        model = adapt(loaded, ("q_proj", "down_proj"), use_dora=use_dora).model
        sums.append(Gradient(model, _picked)([(0, lambda: batch_of(EXAMPLES))], 0))
    kinds = {type(module) for _, module in packed.model.named_modules()}
    assert nn.QuantizedLinear in kinds
    assert sums[0].loss == pytest.approx(sums[1].loss, rel=1e-4)
    expected = np.array(sums[1].vector)
    assert np.abs(np.array(sums[0].vector) - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "mode"), BASES)
def test_steps_on_it_change_the_adapter_and_leave_the_base_bit_for_bit(tiny_dir, bits, mode):
    model = adapt(quantised(tiny_dir, bits, mode), ("q_proj", "down_proj")).model
    before = {k: np.array(v.view(mx.uint8)) for k, v in named_arrays(model.parameters()).items()}
    optimizer, gradient = make_optimizer("adamw", model, **OPTIONS), Gradient(model, _picked)
    losses = []
    for _ in range(4):
        sums = gradient([(0, lambda: batch_of(EXAMPLES))], 0)
        update(optimizer, model, sums.vector / sums.learnt_tokens)
        losses.append(sums.loss)
    assert losses[-1] < losses[0]
    after = {k: np.array(v.view(mx.uint8)) for k, v in named_arrays(model.parameters()).items()}
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    assert changed == set(named_arrays(model.trainable_parameters()))
    assert joined(model.trainable_parameters()).dtype == mx.float32
