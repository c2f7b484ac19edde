from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import cohere, gemma2, llama

from macai.data.batches import Batch
from macai.models.arrays import named_arrays
from macai.train.loss import (
    _picked,
    _whole,
    cross_entropy,
    logits_for,
    loss_value,
    next_token_loss,
)
from tests.train.cases import batch_of, make_examples

SIZES = ((30, 12), (5, 1), (17, 16), (9, 3))
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
}


def small_gemma2():
    args = gemma2.ModelArgs(model_type="gemma2", head_dim=8, rms_norm_eps=1e-5, **SMALL)
    return gemma2.Model(args)


def small_cohere():
    return cohere.Model(cohere.ModelArgs(model_type="cohere", **SMALL))


def small_llama(*, tied):
    args = llama.ModelArgs(model_type="llama", rms_norm_eps=1e-5, tie_word_embeddings=tied, **SMALL)
    return llama.Model(args)


class NoInnerModel(nn.Module):
    """Built otherwise than mlx-lm's models: there is nothing to pick from."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(400, 400)

    def __call__(self, ids):
        return self.table(ids)


def cross_entropy_computed_apart(model, examples):
    """Row by row without padding, in float64: the sum over learnt tokens of -log p."""
    total = 0.0
    for example in examples:
        logits = np.array(model(mx.array(example.ids)[None])[0], np.float64)
        top = logits.max(axis=-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
        for t in np.flatnonzero(example.learn):
            total -= log_p[t - 1, example.ids[t]]
    return total


MODELS = {
    "llama": lambda: small_llama(tied=False),
    "llama, tied": lambda: small_llama(tied=True),
    "gemma 2, soft caps": small_gemma2,
    "cohere, a scale": small_cohere,
    "no inner model": NoInnerModel,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_loss_is_the_cross_entropy_computed_apart(make):
    mx.random.seed(0)
    model, examples = make(), make_examples(*SIZES)
    loss = next_token_loss(model, batch_of(examples), logits_for(model))
    assert (loss.shape, loss.dtype) == ((), mx.float32)
    assert loss.item() == pytest.approx(cross_entropy_computed_apart(model, examples), rel=1e-5)


@pytest.mark.parametrize("make", [small_gemma2, small_cohere])
def test_applying_only_the_head_to_a_model_that_does_more_would_be_noticed(make):
    mx.random.seed(0)
    model, examples = make(), make_examples(*SIZES)
    for p in (model.model.embed_tokens,):
        p.weight = p.weight * 40
    expected = cross_entropy_computed_apart(model, examples)
    batch = batch_of(examples)
    assert next_token_loss(model, batch, logits_for(model)).item() == pytest.approx(
        expected, rel=1e-5
    )
    assert next_token_loss(model, batch, _picked).item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_of_a_plain_model_sees_learnt_positions_only(tied):
    model = small_llama(tied=tied)
    assert logits_for(model) is _picked
    batch = batch_of(make_examples((200, 3)))
    scores = _picked(model, batch.ids, batch.positions)
    assert scores.shape == (4, 400)  # 3 learnt, rounded up; not 200


@pytest.mark.parametrize("make", [small_gemma2, small_cohere, NoInnerModel])
def test_a_model_that_does_more_than_its_head_gives_its_own_logits(make):
    assert logits_for(make()) is _whole


def test_the_tiny_model_has_the_loss_computed_apart(tiny):
    examples = make_examples(*SIZES)
    loss = next_token_loss(tiny.model, batch_of(examples), logits_for(tiny.model))
    expected = cross_entropy_computed_apart(tiny.model, examples)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    value = loss_value(tiny.model, batch_of(examples), logits_for(tiny.model))
    assert value == pytest.approx(expected, rel=1e-6)


def test_gradients_are_the_same_for_picked_and_whole_logits(adapted):
    model, batch = adapted(), batch_of(make_examples(*SIZES))
    gradient = nn.value_and_grad(model, next_token_loss)
    (loss, picked), (same, whole) = (gradient(model, batch, x) for x in (_picked, _whole))
    assert loss.item() == pytest.approx(same.item(), rel=1e-6)
    for name, g in named_arrays(picked).items():
        w = np.array(named_arrays(whole)[name])
        assert np.abs(w).max() > 1e-3, name
        np.testing.assert_allclose(np.array(g), w, rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_pads_the_list_of_targets_has_no_gradient(adapted):
    model, examples = adapted(), make_examples((9, 1))
    gradient = nn.value_and_grad(model, next_token_loss)
    _, grads = gradient(model, batch_of(examples), _picked)
    alone = batch_of(examples)
    trimmed = replace(
        alone,
        positions=alone.positions[:1],
        targets=alone.targets[:1],
        weights=alone.weights[:1],
    )
    _, expected = gradient(model, trimmed, _picked)
    for name, g in named_arrays(grads).items():
        np.testing.assert_allclose(
            np.array(g), np.array(named_arrays(expected)[name]), atol=1e-6, err_msg=name
        )


@pytest.mark.slow
def test_a_real_model_has_the_loss_computed_apart(smollm2):
    examples = make_examples(*SIZES)
    assert logits_for(smollm2.model) is _picked
    loss = next_token_loss(smollm2.model, batch_of(examples), _picked)
    expected = cross_entropy_computed_apart(smollm2.model, examples)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_cross_entropy_and_its_gradient_are_those_of_float64():
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(7, 50)) * 20).astype(np.float32)
    scores[0, 3], scores[1, :] = 500.0, -1e4  # where exp alone would overflow, or all be zero
    targets, weights = rng.integers(0, 50, 7).astype(np.int32), rng.normal(size=7)

    exact = scores.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    softmax = np.exp(exact) / np.exp(exact).sum(axis=-1, keepdims=True)
    losses = np.log(np.exp(exact).sum(axis=-1)) - exact[np.arange(7), targets]
    gradient = (softmax - np.eye(50)[targets]) * weights[:, None]

    weights = weights.astype(np.float32)
    arrays = (mx.array(targets), mx.array(weights))
    batch = Batch(None, mx.zeros((1, 7)), mx.arange(7), *arrays, learnt_tokens=7, real_tokens=7)
    slope = mx.zeros((7, 50))
    mx.eval(slope)
    values = [cross_entropy(mx.array(scores), batch, x) for x in (slope, None)]
    assert values == pytest.approx([(losses * weights).sum()] * 2, rel=1e-6)
    np.testing.assert_allclose(np.array(slope), gradient, rtol=1e-5, atol=1e-7)
