import numpy as np
import pytest

from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.opened import SdBundle
from macai.coreml.sd.picture import Wanted, make_picture
from macai.coreml.sd.verify import psnr
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.errors import ModelError
from tests.coreml.sd.bundles import export_tiny, xl_dir

PROMPT = "two red apples"  # Swift and transformers cut it alike


def expected(model, **options):
    """What MLX makes of the model itself, float32 [1, H, W, 3]."""
    pipeline = Pipeline(Parts(open_checkpoint(model)))
    asked = {"prompt": PROMPT, "negative": "", "scheduler": "swift", "rng": "numpy", "steps": 4}
    *_, last = pipeline.sample(Request(**(asked | options)))
    return pipeline.decode(last.latents)


def made(bundle, **options):
    return make_picture(bundle, read_sd_manifest(bundle), Wanted(prompt=PROMPT, steps=4, **options))


def test_the_packages_make_the_picture_that_mlx_makes(bundle, model):
    for precision, least in {"fp32": 70, "fp16": 60}.items():
        picture = made(bundle, precision=precision, seed=3)
        assert picture.shape == (1, 32, 32, 3)
        assert psnr(picture, expected(model, seed=3)) > least
    assert psnr(made(bundle, seed=4), expected(model, seed=3)) < 30


def test_negative_prompt_and_guidance_are_heeded(bundle, model):
    options = {"negative": "rain", "guidance": 3.0}
    assert psnr(made(bundle, **options), expected(model, **options)) > 60
    assert psnr(made(bundle, **options), expected(model)) < 50  # it hears little of a prompt
    assert psnr(made(bundle, guidance=0.5), expected(model, guidance=0.5)) > 60


@pytest.mark.parametrize("name", ["swift-dpm++", "ddim"])
def test_the_packages_take_another_scheduler(bundle, model, name):
    other = made(bundle, scheduler=name)
    assert psnr(other, expected(model, scheduler=name)) > 60
    assert psnr(other, made(bundle)) < 50


@pytest.mark.slow
def test_a_unet_of_one_row_makes_the_same_picture(bundle, model, tmp_path):
    export_tiny(model, tmp_path / "one", batch=1, timesteps=0)
    assert psnr(made(tmp_path / "one"), made(bundle)) > 60


@pytest.mark.slow
def test_sdxl_makes_the_picture_that_mlx_makes(tmp_path):
    model = xl_dir(tmp_path / "xl", force_upcast=False)
    export_tiny(model, tmp_path / "b", timesteps=0)
    assert psnr(made(tmp_path / "b"), expected(model)) > 45


def test_the_swift_scheduler_is_for_noise_alone(bundle, tmp_path):
    manifest = read_sd_manifest(bundle)
    manifest.scheduler["prediction_type"] = "v_prediction"
    with pytest.raises(ModelError, match="prediction_type"):
        make_picture(bundle, manifest, Wanted(prompt=PROMPT))


def test_prompts_are_cut_as_swift_does_it(bundle):
    opened = SdBundle(bundle, read_sd_manifest(bundle), "fp32")
    comma = opened.told(["apples, red"])["encoder_hidden_states"]
    ids = opened.tokenizer.swift_ids(["apples, red"])
    assert not np.array_equal(ids, opened.tokenizer.ids(["apples, red"]))
    said = opened.run("TextEncoder", {"input_ids": ids.astype(np.float32)})["last_hidden_state"]
    assert np.array_equal(comma[0, :, 0].T, said[0])
