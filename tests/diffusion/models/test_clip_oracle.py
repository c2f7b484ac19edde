"""Text encoders beside transformers' own: tiny ones of each kind, and full-size ones (long)."""

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.models import from_config
from macai.models.arrays import named_arrays
from tests.diffusion.models.text_vae_cases import PLAIN, PROJECTED, TEXT_CONFIGS, loaded, psnr
from tests.diffusion.models.text_vae_cases import token_ids as tiny_ids
from tests.diffusion.models.text_vae_oracle import text_encoder, text_states

pytestmark = pytest.mark.oracle

SHARED = {"vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5}
VIT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
H = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20}

# As in the files of SD 1 and SDXL's first, of SD 2, and of SDXL's second, whose 32 layers are 8
# here for the memory of three copies.
FULL_SIZE = {
    "vit-l": SHARED | VIT_L | PLAIN | {"num_hidden_layers": 12, "hidden_act": "quick_gelu"},
    "open-clip-h": SHARED | H | PLAIN | {"num_hidden_layers": 23, "hidden_act": "gelu"},
    "big-g": SHARED
    | BIG_G
    | PROJECTED
    | {"num_hidden_layers": 8, "hidden_act": "gelu", "projection_dim": 1280},
}
PARAMETERS = {"vit-l": 123_060_480, "open-clip-h": 340_387_840}


def prompts() -> np.ndarray:
    """Return int32 [2, 77]: a short prompt and one of all 75 words, padded with the end's id."""
    words = np.random.default_rng(0).integers(0, 49406, (2, 75))
    ids = np.full((2, 77), 49407, np.int32)
    ids[:, 0] = 49406
    ids[0, 1:9], ids[1, 1:76] = words[0, :8], words[1]
    return ids


def assert_same(config, ids: np.ndarray, *, least: float) -> None:
    theirs, weights = text_encoder(config)
    wanted = text_states(theirs, ids)
    del theirs
    out = loaded(from_config(config), weights)(mx.array(ids))
    assert len(out.hidden_states) == len(wanted["hidden_states"])
    found = {f"hidden_states[{n}]": state for n, state in enumerate(out.hidden_states)}
    found |= {"last_hidden_state": out.last_hidden_state}
    for key in ("pooled_output", "text_embeds"):
        if key in wanted:
            found[key] = getattr(out, key)
    wanted |= {f"hidden_states[{n}]": state for n, state in enumerate(wanted["hidden_states"])}
    ratios = {key: psnr(value, wanted[key]) for key, value in found.items()}
    print(f"{min(ratios.values()):.1f} dB at least")
    assert {k: v for k, v in ratios.items() if v < least} == {}


@pytest.mark.parametrize("pad", [0, 399])
@pytest.mark.parametrize("kind", TEXT_CONFIGS)
def test_a_tiny_encoder_computes_what_transformers_does(kind, pad):
    assert_same(TEXT_CONFIGS[kind], tiny_ids(TEXT_CONFIGS[kind], pad=pad), least=125)


@pytest.mark.parametrize("kind", ["vit-l", "big-g"])
def test_a_row_without_its_end_and_one_shorter_are_transformers_too(kind):
    ids = np.random.default_rng(1).integers(3, 390, (3, 20)).astype(np.int32)
    assert_same(TEXT_CONFIGS[kind], ids, least=125)


@pytest.mark.long
@pytest.mark.parametrize("eos_token_id", [2, 49407])
def test_vit_l_of_full_size_computes_what_transformers_does(eos_token_id):
    assert_same(FULL_SIZE["vit-l"] | {"eos_token_id": eos_token_id}, prompts(), least=110)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["open-clip-h", "big-g"])
def test_open_clip_of_full_size_computes_what_transformers_does(kind):
    assert_same(FULL_SIZE[kind], prompts(), least=110)


@pytest.mark.parametrize("kind", PARAMETERS)
def test_full_size_encoders_have_as_many_parameters_as_the_files(kind):
    parameters = named_arrays(from_config(FULL_SIZE[kind]).parameters())
    assert sum(array.size for array in parameters.values()) == PARAMETERS[kind]
