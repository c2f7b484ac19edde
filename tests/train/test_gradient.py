import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.models.arrays import named_arrays
from macai.models.recompute import is_recomputed, recomputed
from macai.train.gradient import Gradient
from macai.train.loss import _picked, next_token_loss
from macai.train.optimizer import joined, put
from tests.train.cases import batch_of, make_examples

by_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="MLX compiles for a CPU with g++"
)
EXAMPLES = make_examples((30, 12), (14, 1), (17, 6), (12, 3))
ROWS = list(enumerate([(0, 2), (1, 3), (0, 2)]))


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


@pytest.mark.slow
@by_compiler
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("prefix", [0, 9])
def test_a_step_on_a_gpu_is_compiled_and_the_same_each_time(adapted, recompute, prefix):
    # As on a GPU, but on this machine's CPU.
    for example in EXAMPLES:
        example.ids[:9] = range(10, 19)
        example.learn[:10] = False
    model = adapted(dropout=0.4)
    model.train()
    gradient = Gradient(model, _picked, label_smoothing=0.1)
    parts = [(n, lambda rows=rows: batch_of(EXAMPLES, rows, prefix=prefix)) for n, rows in ROWS]
    with recomputed(model, wanted=recompute):
        expected = [gradient(parts, seed) for seed in (3, 9)]
        gradient._on_cpu = False
        for seed, two_passes in zip((3, 9), expected, strict=True):
            for _ in range(2):  # traced, and from memory
                sums = gradient(parts, seed)
                assert sums.loss == pytest.approx(two_passes.loss, rel=1e-5)
                difference = np.abs(np.array(sums.vector - two_passes.vector)).max()
                assert difference < 1e-5 * mx.abs(two_passes.vector).max().item()
    assert expected[0].loss != pytest.approx(expected[1].loss, rel=1e-4), "another dropout"


@pytest.mark.slow
@by_compiler
def test_a_compiled_step_follows_the_parameters(adapted):
    model, make = adapted(), lambda: batch_of(EXAMPLES)
    gradient = Gradient(model, _picked)
    gradient._on_cpu = False
    before = gradient([(0, make)], 0).loss
    put(model, joined(model.trainable_parameters()) + 0.05)
    after = gradient([(0, make)], 0).loss
    assert after == pytest.approx(next_token_loss(model, make(), _picked).item(), rel=1e-5)
    assert abs(after - before) > 1e-3


def test_recomputed_blocks_are_not_compiled(adapted):
    model = adapted()
    with recomputed(model):
        assert is_recomputed(model)
    assert not is_recomputed(model)
