"""A small model that was really trained, where it is there: a bundle of it from end to end."""

from pathlib import Path

import numpy as np
import pytest

from macai.coreml.sd.form import Form
from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.palettes import apply_palettes
from macai.coreml.sd.picture import Wanted, make_picture
from macai.coreml.sd.proof import verify_sd, with_palettes
from macai.coreml.sd.verify import psnr
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from tests.coreml.sd.bundles import export_tiny, sources

MODEL = Path(__file__).parents[3] / "recipes/emoji-diffusion"
PROMPTS = (
    "red apple", "grinning face", "cat", "house", "sun", "blue heart", "tree", "rocket",
)  # fmt: skip
STEPS = 20
GUIDANCE = 3.0  # what it is drawn with; with much more its colours leave their range

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(
        not list(MODEL.glob("unet/*.safetensors")), reason=f"{MODEL} has no weights here"
    ),
]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji") / "bundle"
    export_tiny(MODEL, folder, timesteps=STEPS)
    return folder


def request(prompt):
    options = {"scheduler": "swift", "rng": "numpy", "steps": STEPS, "negative": ""}
    return Request(prompt=prompt, guidance=GUIDANCE, **options)


def test_its_packages_take_the_noise_out_as_the_model_does(emoji):
    report = verify_sd(read_sd_manifest(emoji), emoji, sources(MODEL), timesteps=1, steps=STEPS)
    assert report["passed"]


def test_a_picture_of_its_packages_is_the_models(emoji):
    pipeline = Pipeline(Parts(open_checkpoint(MODEL)))
    for prompt in PROMPTS[:2]:  # Swift and transformers cut them alike
        *_, last = pipeline.sample(request(prompt))
        wanted = Wanted(prompt=prompt, steps=STEPS, guidance=GUIDANCE)
        picture = make_picture(emoji, read_sd_manifest(emoji), wanted)
        assert psnr(picture, np.array(pipeline.decode(last.latents))) >= 40


def latents(palettes):
    """Return what the model, its U-Net in palettes, makes of the prompts."""

    def prepare(name, module):
        if name == "unet":
            apply_palettes(module, palettes)

    pipeline = Pipeline(Parts(open_checkpoint(MODEL), prepare=prepare))
    return [np.array(list(pipeline.sample(request(p)))[-1].latents) for p in PROMPTS]


def test_a_mean_of_four_and_a_half_bits_is_3_db_closer_than_four():
    def chosen(bits):
        return with_palettes(sources(MODEL), Form(), bits=bits).palettes["unet"]

    wanted = latents({})
    found = {
        bits: np.mean([psnr(*pair) for pair in zip(latents(chosen(bits)), wanted, strict=True)])
        for bits in (4, 4.5)
    }
    assert found[4.5] - found[4] >= 3
