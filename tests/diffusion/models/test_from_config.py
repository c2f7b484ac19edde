"""A config.json builds the model it names."""

import pytest

from macai.diffusion.models import from_config
from macai.errors import ModelError
from tests.diffusion.models.text_vae_cases import TEXT_CONFIGS, VAE_CONFIGS
from tests.diffusion.models.unet_cases import KINDS

CONFIGS = TEXT_CONFIGS | VAE_CONFIGS | {f"unet-{name}": c for name, c in KINDS.items()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_builds_the_model_it_names(kind):
    config = CONFIGS[kind]
    named = config.get("_class_name") or config["architectures"][0]
    assert type(from_config(config)).__name__ == named


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "VQModel"}, "is of a VQModel, which is not supported"),
        ({"architectures": ["T5EncoderModel"]}, "is of a T5EncoderModel"),
        ({"architectures": []}, "names no class"),
        ({"architectures": None}, "names no class"),
        ({}, "names no class"),
    ],
)
def test_a_config_of_another_model_is_named_and_the_hint_lists_those_there_are(config, message):
    with pytest.raises(ModelError, match=message) as caught:
        from_config(config)
    for known in ("AutoencoderKL", "CLIPTextModelWithProjection", "UNet2DConditionModel"):
        assert known in caught.value.hint
