"""Text encoders compute what transformers' do (goldens), and refuse what they do not know."""

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.models import from_config
from macai.diffusion.models.clip_text import (
    HIDDEN,
    CLIPTextConfig,
    CLIPTextModel,
    causal_mask,
    end_of_text,
)
from macai.errors import ModelError
from tests.diffusion.models.text_vae_cases import (
    TEXT_CONFIGS,
    psnr,
    token_ids,
    with_random_weights,
)

GOLDENS = Path(__file__).parents[2] / "goldens" / "diffusion_text.npz"


@cache
def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("kind", TEXT_CONFIGS)
def test_a_text_encoder_computes_what_transformers_does(kind):
    model = with_random_weights(from_config(TEXT_CONFIGS[kind]))
    out = model(mx.array(token_ids(TEXT_CONFIGS[kind], pad=399)))
    every = int(goldens()["every"])
    found = {
        "last": out.last_hidden_state[:, ::every],
        "penultimate": out.hidden_states[-2][:, ::every],
        "pooled_output": out.pooled_output,
        "text_embeds": out.text_embeds,
    }
    wanted = {k.partition("/")[2]: v for k, v in goldens().items() if k.startswith(kind + "/")}
    assert {"last", "penultimate"} < set(wanted)
    for key, value in wanted.items():
        assert psnr(found[key], value) > 125, key


def test_only_an_encoder_with_a_projection_has_text_embeds():
    ids = mx.array([[398, 5, 399]])
    assert from_config(TEXT_CONFIGS["vit-l"])(ids).text_embeds is None
    assert from_config(TEXT_CONFIGS["big-g"])(ids).text_embeds.shape == (1, 48)


def test_hidden_states_are_the_embeddings_and_every_layers_and_the_norm_comes_after():
    model = with_random_weights(from_config(TEXT_CONFIGS["vit-l"]))
    ids = mx.array(token_ids(TEXT_CONFIGS["vit-l"], pad=399))
    out, text = model(ids), model.text_model
    assert len(out.hidden_states) == TEXT_CONFIGS["vit-l"]["num_hidden_layers"] + 1
    assert mx.array_equal(out.hidden_states[0], text.embeddings(ids))
    assert mx.array_equal(text.final_layer_norm(out.hidden_states[-1]), out.last_hidden_state)


def test_no_token_sees_those_after_it():
    model = with_random_weights(from_config(TEXT_CONFIGS["big-g"]))
    ids = token_ids(TEXT_CONFIGS["big-g"], pad=399)[3:4]
    other = ids.copy()
    other[:, 20:] = 7
    before, after = (model(mx.array(i)).last_hidden_state for i in (ids, other))
    assert mx.array_equal(before[:, :20], after[:, :20])
    assert not mx.allclose(before[:, 20:], after[:, 20:], atol=1e-2)


def test_the_end_of_a_text_is_its_first_end_token():
    ids = mx.array([[398, 5, 399, 399], [398, 399, 405, 399], [398, 5, 6, 7]])
    assert end_of_text(ids, 399).tolist() == [2, 1, 0]


def test_the_legacy_end_of_a_text_is_its_largest_token():
    ids = mx.array([[398, 5, 399, 399], [398, 399, 405, 399], [398, 5, 6, 7]])
    assert end_of_text(ids, 2).tolist() == [2, 2, 0]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_the_mask_is_finite_and_hides_all_that_comes_later(dtype):
    mask = causal_mask(77, dtype)
    assert mask.dtype == dtype
    assert mx.isfinite(mask + mx.array(-5e4, dtype)).all()  # with a score as low as they come
    assert np.array_equal(np.array(mask.astype(mx.float32)) < HIDDEN / 2, ~np.tri(77, dtype=bool))


def test_a_float16_encoder_computes_finite_states_of_its_own_type():
    model = with_random_weights(from_config(TEXT_CONFIGS["big-g"]))
    ids = mx.array(token_ids(TEXT_CONFIGS["big-g"], pad=0))
    wanted = model(ids)
    model.set_dtype(mx.float16)
    found = model(ids)
    for a, b in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert a.dtype == mx.float16
        assert psnr(a.astype(mx.float32), np.array(b)) > 60
    assert found.text_embeds.dtype == mx.float16
    assert psnr(found.text_embeds.astype(mx.float32), np.array(wanted.text_embeds)) > 55


def test_more_tokens_than_positions_are_an_error():
    with pytest.raises(ValueError, match="78 tokens, and the model has positions for 77"):
        from_config(TEXT_CONFIGS["vit-l"])(mx.zeros((1, 78), mx.int32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new' is not supported"),
        ({"hidden_size": 66}, "hidden_size 66 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"eos_token_id": [2, 399]}, r"eos_token_id is \[2, 399\]"),
        ({"layer_norm_eps": True, "vocab_size": 1.5}, "vocab_size is 1.5; layer_norm_eps is True"),
    ],
)
def test_what_cannot_be_computed_is_named(change, message):
    with pytest.raises(ModelError, match=message):
        from_config(TEXT_CONFIGS["vit-l"] | change)


def test_null_is_the_default_and_other_keys_are_ignored():
    config = CLIPTextConfig.from_dict({"projection_dim": None, "dropout": 0.3, "hidden_size": 64})
    assert config == CLIPTextConfig(hidden_size=64)
    assert CLIPTextModel(config).text_model.encoder.layers[0].self_attn.q_proj.weight.shape[0] == 64
