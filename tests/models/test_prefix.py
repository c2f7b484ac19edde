import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import gemma2, llama, mamba, qwen3

from macai.models import prefix
from macai.models.arrays import named_arrays
from macai.models.prefix import can_share_prefix, prefix_caches
from macai.train.loss import _picked, _whole, next_token_loss
from tests.train.cases import batch_of, make_examples

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "rms_norm_eps": 1e-5,
}


def small_llama(**options):
    return llama.Model(llama.ModelArgs(model_type="llama", **(SMALL | options)))


def small_qwen3():
    more = {"max_position_embeddings": 64, "rope_theta": 1e4, "head_dim": 8}
    args = qwen3.ModelArgs(model_type="qwen3", tie_word_embeddings=True, **SMALL, **more)
    return qwen3.Model(args)


def small_gemma2():
    return gemma2.Model(gemma2.ModelArgs(model_type="gemma2", head_dim=8, **SMALL))


def small_mamba():
    return mamba.Model(
        mamba.ModelArgs(
            model_type="mamba",
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            state_size=8,
            num_hidden_layers=2,
            conv_kernel=4,
            use_bias=False,
            use_conv_bias=True,
            time_step_rank=4,
        )
    )


SHARING = {"llama": small_llama, "qwen 3": small_qwen3, "gemma 2": small_gemma2}


def beginning_alike(*sizes, prefix):
    """Random rows that all begin with the same tokens."""
    rows = make_examples(*sizes)
    for row in rows[1:]:
        row.ids[:prefix] = rows[0].ids[:prefix]
    return rows


@pytest.mark.parametrize("make", SHARING.values(), ids=SHARING)
def test_logits_after_a_shared_prefix_are_the_models_own(make):
    mx.random.seed(0)
    model = make()
    assert can_share_prefix(model)
    ids = mx.array(np.random.default_rng(0).integers(3, 400, (3, 20)))
    ids[:, :7] = ids[0, :7]
    expected = model(ids)[:, 7:]
    actual = model(ids[:, 7:], cache=prefix_caches(model, ids[0, :7]))
    np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logits", [_picked, _whole])
def test_loss_and_gradients_are_those_of_whole_rows(adapted, logits):
    """Also what reaches the adapters through the prefix, from every row."""
    model, rows = adapted(), beginning_alike((30, 12), (14, 1), (25, 13), (19, 6), prefix=11)
    gradient = nn.value_and_grad(model, next_token_loss)
    loss, expected = gradient(model, batch_of(rows), logits)
    shared, actual = gradient(model, batch_of(rows, prefix=11), logits)
    assert shared.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, g in named_arrays(expected).items():
        e = np.array(g)
        np.testing.assert_allclose(
            np.array(named_arrays(actual)[name]), e, rtol=1e-4, atol=1e-5 * np.abs(e).max()
        )


def test_a_prefix_without_its_gradient_would_be_noticed(adapted, monkeypatch):
    model, rows = adapted(), beginning_alike((30, 12), (14, 1), (25, 13), prefix=11)
    gradient = nn.value_and_grad(model, next_token_loss)
    _, expected = gradient(model, batch_of(rows, prefix=11), _picked)
    after = prefix._after
    monkeypatch.setattr(prefix, "_after", lambda p, new: after(mx.stop_gradient(p), new))
    _, actual = gradient(model, batch_of(rows, prefix=11), _picked)
    name = "model.layers.0.mlp.down_proj.lora_B"
    a, e = (np.array(named_arrays(grads)[name]) for grads in (actual, expected))
    assert np.abs(a - e).max() > 0.01 * np.abs(e).max()


def test_one_token_after_the_prefix_is_enough(adapted):
    model, rows = adapted(), beginning_alike((12, 1), (12, 1), prefix=10)
    expected = next_token_loss(model, batch_of(rows), _picked).item()
    shared = batch_of(rows, prefix=10)
    assert next_token_loss(model, shared, _picked).item() == pytest.approx(expected, rel=1e-6)


def sliding_llama():
    types = ["sliding_attention", "full_attention"]
    return small_llama(layer_types=types, sliding_window=4)


class NoCache(nn.Module):
    """Takes no cache, as no model of mlx-lm does."""

    def __init__(self):
        super().__init__()
        self.layers = []
        self.table = nn.Embedding(400, 400)

    def __call__(self, ids):
        return self.table(ids)


class OffByOne(llama.Model):
    """Counts positions in its own way."""

    def __call__(self, inputs, cache=None, input_embeddings=None):
        if cache is not None and cache[0].offset:
            for layer in cache:
                layer.offset += 1
        return super().__call__(inputs, cache, input_embeddings)


@pytest.mark.parametrize(
    "make",
    [
        small_mamba,
        sliding_llama,
        NoCache,
        lambda: OffByOne(llama.ModelArgs(model_type="llama", **SMALL)),
    ],
    ids=["mamba", "sliding window", "no cache", "other positions"],
)
def test_a_model_that_remembers_otherwise_is_left_alone(make):
    mx.random.seed(0)
    assert not can_share_prefix(make())
