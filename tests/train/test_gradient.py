import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.models.arrays import named_arrays
from macai.train.gradient import Gradient
from macai.train.loss import _picked, next_token_loss
from macai.train.optimizer import joined
from tests.train.cases import batch_of, make_examples

EXAMPLES = make_examples((30, 12), (14, 1), (17, 6), (12, 3))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("prefix", [0, 9])
def test_it_is_what_mlx_computes_in_one_pass(adapted, dropout, prefix):
    for example in EXAMPLES:
        example.ids[:9] = range(10, 19)
        example.learn[:10] = False
    model = adapted(dropout=dropout)
    model.train()
    before = {k: np.array(v) for k, v in named_arrays(model.parameters()).items()}
    batch = batch_of(EXAMPLES, prefix=prefix)
    sums = Gradient(model, _picked)([(4, lambda: batch)], 3)
    after = named_arrays(model.parameters())
    assert all((np.array(after[k]) == v).all() for k, v in before.items())
    mx.random.seed(7)
    loss, grads = nn.value_and_grad(model, next_token_loss)(model, batch, _picked)
    expected = np.array(joined(grads))
    assert sums.loss == pytest.approx(loss.item(), rel=1e-5)
    assert np.abs(np.array(sums.vector) - expected).max() < 2e-6 * np.abs(expected).max()
