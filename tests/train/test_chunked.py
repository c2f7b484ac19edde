import shutil
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.models.lora import add_lora
from macai.train import chunked
from macai.train.chunked import Head, pieces, summed_loss
from macai.train.gradient import Gradient
from macai.train.loss import (
    _picked,
    _whole,
    hidden_of,
    logits_for,
    loss_value,
    next_token_loss,
    scores_of,
)
from macai.train.optimizer import joined
from tests.train.cases import batch_of, make_examples
from tests.train.test_loss import MODELS, small_llama

EXAMPLES = make_examples((30, 12), (14, 1), (17, 6), (12, 3))  # 22 learnt, of 400 tokens
SMOOTHING = pytest.mark.parametrize("smoothing", [0.0, 0.2])


@pytest.fixture
def few_rows(monkeypatch):
    """Five pieces of four or five rows."""
    monkeypatch.setattr(chunked, "PIECE_BYTES", 5 * 4 * 400)


def all_trained():
    mx.random.seed(1)
    return small_llama(tied=False)


def tied_and_trained():
    mx.random.seed(1)
    return small_llama(tied=True)


def adapted_head():
    model = all_trained()
    add_lora(model, ["lm_head", "model.layers.0.mlp.up_proj"], rank=4, alpha=8)
    model.update({"lm_head": {"lora_B": mx.random.normal((400, 4)) * 0.1}})
    return model


def frozen_head():
    model = all_trained()
    add_lora(model, ["model.layers.1.self_attn.q_proj"], rank=4, alpha=8)
    return model


KINDS = pytest.mark.parametrize("make", [all_trained, tied_and_trained, adapted_head, frozen_head])


def plain_loss(model, batch, logits, smoothing):
    """All logits at once, and MLX's own loss and gradient of it."""
    scores = scores_of(model, batch, logits)
    losses = nn.losses.cross_entropy(scores, batch.targets, label_smoothing=smoothing)
    return (losses * batch.weights).sum()


def close(actual, expected):
    actual, expected = np.array(joined(actual)), np.array(joined(expected))
    assert np.abs(expected).max() > 1e-3
    assert np.abs(actual - expected).max() < 2e-6 * np.abs(expected).max()


@SMOOTHING
@KINDS
def test_loss_and_gradient_are_those_of_all_logits_at_once(make, smoothing, few_rows):
    model, batch = make(), batch_of(EXAMPLES)
    assert len(pieces(len(batch.targets), 400)) == 5
    loss, grads = nn.value_and_grad(model, next_token_loss)(model, batch, _picked, smoothing)
    same, expected = nn.value_and_grad(model, plain_loss)(model, batch, _picked, smoothing)
    assert loss.item() == pytest.approx(same.item(), rel=1e-6)
    close(grads, expected)


@SMOOTHING
@KINDS
def test_so_are_those_of_a_step_on_the_cpu(make, smoothing, few_rows):
    model, batch = make(), batch_of(EXAMPLES)
    sums = Gradient(model, _picked, label_smoothing=smoothing)([(0, lambda: batch)], 0)
    loss, expected = nn.value_and_grad(model, plain_loss)(model, batch, _picked, smoothing)
    assert sums.loss == pytest.approx(loss.item(), rel=1e-6)
    close(sums.vector, expected)
    again = Gradient(model, _picked, label_smoothing=smoothing)([(0, lambda: batch)], 0)
    assert mx.array_equal(again.vector, sums.vector), "the model was left as it was"


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_loss_to_check_with_is_the_same_in_pieces(make, few_rows):
    mx.random.seed(0)
    model, batch = make(), batch_of(EXAMPLES)
    logits = logits_for(model)
    expected = plain_loss(model, batch, logits, 0.0).item()
    assert loss_value(model, batch, logits) == pytest.approx(expected, rel=1e-6)
    assert next_token_loss(model, batch, logits).item() == pytest.approx(expected, rel=1e-6)


@SMOOTHING
def test_the_gradient_is_that_of_float64(smoothing, few_rows):
    rng = np.random.default_rng(0)
    weight, hidden = rng.normal(size=(400, 6)), rng.normal(size=(22, 6))
    targets, weights = rng.integers(0, 400, 22), rng.normal(size=22)
    scores = hidden @ weight.T
    softmax = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    wanted = (1 - smoothing) * np.eye(400)[targets] + smoothing / 400
    slope = (softmax - wanted) * weights[:, None]
    loss = -(wanted * np.log(softmax)).sum(axis=-1) @ weights

    linear = nn.Linear(6, 400, bias=False)
    linear.weight = mx.array(weight.astype(np.float32))
    model = nn.Sequential(linear)
    arrays = (mx.array(targets.astype(np.int32)), mx.array(weights.astype(np.float32)))

    def summed(model, hidden):
        head = Head(model, lambda model, x: model.layers[0](x), "layers.0")
        return summed_loss(head, hidden, *arrays, smoothing)

    rows = mx.array(hidden.astype(np.float32))
    value, grads = nn.value_and_grad(model, summed)(model, rows)
    back = mx.grad(partial(summed, model))(rows)
    assert value.item() == pytest.approx(loss, rel=1e-5)
    close(grads, {"w": mx.array((slope.T @ hidden).astype(np.float32))})
    close({"h": back}, {"h": mx.array((slope @ weight).astype(np.float32))})


def test_dropout_on_the_head_is_one_mask_in_both_passes(few_rows):
    model, batch = adapted_head(), batch_of(EXAMPLES)
    model.lm_head.dropout = nn.Dropout(0.5)
    model.train()
    mx.random.seed(3)
    loss, grads = nn.value_and_grad(model, next_token_loss)(model, batch, _picked)
    # The logits are linear in B: along it, a loss of the same masks changes as its gradient says.
    direction = mx.random.normal(model.lm_head.lora_B.shape)
    slope = (grads["lm_head"]["lora_B"] * direction).sum().item()
    b, values = model.lm_head.lora_B, []
    for step in (1e-3, -1e-3):
        model.lm_head.lora_B = b + step * direction
        mx.random.seed(3)
        values.append(next_token_loss(model, batch, _picked).item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-2)
    assert loss.item() == pytest.approx(sum(values) / 2, rel=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles for a CPU with g++")
def test_it_can_be_compiled(few_rows):
    model, batch = adapted_head(), batch_of(EXAMPLES)
    step = nn.value_and_grad(model, next_token_loss)
    loss, grads = step(model, batch, _picked, 0.2)
    state = [model.state]
    compiled = mx.compile(lambda: step(model, batch, _picked, 0.2), inputs=state, outputs=state)
    same, again = compiled()
    assert same.item() == pytest.approx(loss.item(), rel=1e-6)
    close(again, grads)


ROWS, VOCABULARY = 512, 32768
ALL_LOGITS = 4 * ROWS * VOCABULARY


def peak_bytes(of):
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    of()
    return mx.get_peak_memory() - before


def wide_model():
    mx.random.seed(0)
    model = small_llama(tied=False)
    model.lm_head = nn.Linear(32, VOCABULARY, bias=False)
    add_lora(model, ["model.layers.1.self_attn.q_proj"], rank=4, alpha=8)
    return model


def by_mlx(model, batch):
    mx.eval(nn.value_and_grad(model, next_token_loss)(model, batch, _picked))


def by_numpy(model, batch):
    Gradient(model, _picked)([(0, lambda: batch)], 0)


def to_check(model, batch):
    loss_value(model, batch, _picked)


@pytest.mark.parametrize("compute", [by_mlx, by_numpy, to_check])
def test_the_logits_of_all_tokens_are_never_in_memory(compute, monkeypatch):
    model = wide_model()
    batch = batch_of(make_examples(*[(65, 64)] * (ROWS // 64)))
    at_once = peak_bytes(lambda: compute(model, batch))
    assert at_once > ALL_LOGITS
    monkeypatch.setattr(chunked, "PIECE_BYTES", ALL_LOGITS // 16)
    assert peak_bytes(lambda: compute(model, batch)) < ALL_LOGITS / 2


def test_pieces_hold_every_row_once_and_are_of_about_the_same_size():
    for rows in (1, 7, 340, 341, 342, 5000):
        cuts = pieces(rows, 49152)
        sizes = [b - a for a, b in cuts]
        assert [row for a, b in cuts for row in range(a, b)] == list(range(rows))
        assert max(sizes) * 49152 * 4 <= chunked.PIECE_BYTES
        assert max(sizes) - min(sizes) <= 1


def test_a_row_larger_than_a_piece_is_a_piece():
    assert pieces(3, chunked.PIECE_BYTES) == [(0, 1), (1, 2), (2, 3)]


def test_a_model_that_makes_its_logits_itself_has_no_head_to_divide():
    model, batch = all_trained(), batch_of(EXAMPLES)
    assert hidden_of(model, batch, _whole).shape[-1] == 400
