"""What only a Mac with Apple silicon can show: Metal computes, and in half precision."""

import mlx.core as mx
import numpy as np
import pytest

from macai.models.arrays import named_arrays
from macai.models.blas import load_fast_blas
from macai.train.loss import _picked, next_token_loss
from tests.train.cases import batch_of, make_examples
from tests.train.test_loop import adamw, run

pytestmark = pytest.mark.mac


def test_metal_computes_and_no_other_blas_is_loaded():
    assert mx.metal.is_available()
    assert mx.default_device() == mx.gpu
    assert not load_fast_blas().found


def test_the_loss_on_the_gpu_is_that_of_the_cpu(adapted):
    model, batch = adapted(), batch_of(make_examples((30, 12), (17, 16)))
    on_gpu = next_token_loss(model, batch, _picked).item()
    with mx.stream(mx.cpu):
        on_cpu = next_token_loss(model, batch, _picked).item()
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


def test_a_half_precision_model_learns_in_float32_adapters(adapted):
    model = adapted()
    for layer in model.layers:
        layer.self_attn.k_proj.set_dtype(mx.float16)
        layer.self_attn.v_proj.set_dtype(mx.float16)
    steps = [[lambda: batch_of(make_examples((30, 12), (17, 16)))]] * 8
    reports = run(model, steps, optimizer=adamw(), rate=1e-3)
    assert reports[-1].loss < reports[0].loss
    assert {a.dtype for a in named_arrays(model.trainable_parameters()).values()} == {mx.float32}
    assert np.isfinite([r.grad_norm for r in reports]).all()
