"""A small model that was really trained, where it is there: a bundle of it from end to end."""

from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.coreml.cast import cast_weights
from macai.coreml.sd.form import Form
from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.palettes import apply_palettes
from macai.coreml.sd.picture import Wanted, make_picture
from macai.coreml.sd.proof import verify_sd, with_palettes
from macai.coreml.sd.sources import Lora
from macai.coreml.sd.trajectory import Course, Trajectory
from macai.coreml.sd.trial import Trial
from macai.coreml.sd.verify import psnr
from macai.diffusion.image_settings import UsedFile
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.lora.apply import fuse
from macai.diffusion.lora.formats import read_lora
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.models import from_config
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.mil import open_package
from tests.coreml.sd.bundles import export_tiny, sources

MODEL = Path(__file__).parents[3] / "recipes/emoji-diffusion"
PROMPTS = (
    "red apple", "grinning face", "cat", "house", "sun", "blue heart", "tree", "rocket",
)  # fmt: skip
STEPS = 20
GUIDANCE = (
    3.0  # what it is drawn with: emoji-unet.toml; with much more its colours leave their range
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(
        not list(MODEL.glob("unet/*.safetensors")), reason=f"{MODEL} has no weights here"
    ),
]


@pytest.fixture(scope="module")
def fluent():
    """The style that ships with it."""
    layers = layers_of({"unet": from_config(open_checkpoint(MODEL).configs["unet"])})
    file = MODEL / "fluent.safetensors"
    used = UsedFile.of(file, scale=1.0)
    return Lora(content=read_lora(file, layers), scale=1.0, file=used)


@pytest.fixture(scope="module")
def emoji(fluent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji") / "bundle"
    export_tiny(MODEL, folder, adapters={"fluent": fluent}, timesteps=STEPS)
    return folder


def request(prompt):
    options = {"scheduler": "swift", "rng": "numpy", "steps": STEPS, "negative": ""}
    return Request(prompt=prompt, guidance=GUIDANCE, **options)


def picture_of(pipeline, prompt):
    *_, last = pipeline.sample(request(prompt))
    return np.array(pipeline.decode(last.latents))


def test_its_packages_take_the_noise_out_as_the_model_does(emoji, fluent):
    own = sources(MODEL, adapters={"fluent": fluent})
    for prompt in PROMPTS[:3]:
        course = Course(steps=STEPS, guidance=GUIDANCE, prompt=prompt)
        report = verify_sd(read_sd_manifest(emoji), emoji, own, timesteps=1, course=course)
        assert report["passed"], report["problems"]


@pytest.mark.parametrize("guidance", [GUIDANCE, 7.5])
def test_half_the_way_they_are_closer_to_the_model_than_its_own_float16(emoji, guidance):
    """Later chance decides: what is rounded is carried on, and grows."""
    unet, own = open_package(emoji / "Resources/Unet.mlpackage").functions["main"], sources(MODEL)
    component = next(one for one in own.components(Form()) if one.name == "Unet")
    module, half = own.load(component), own.load(component)
    cast_weights(half, mx.float16)
    found = {"package": [], "model": []}
    for prompt in PROMPTS:
        told = told_of(own, prompt)
        course = Course(steps=STEPS, guidance=guidance)
        wanted = halfway(course, component, told, by_module(component, module))
        runs = {
            "package": lambda given: unet.run(given, precision="fp16").outputs["noise_pred"],
            "model": by_module(component, half),
        }
        for name, run in runs.items():
            found[name].append(psnr(halfway(course, component, told, run), wanted))
    assert np.median(found["package"]) - np.median(found["model"]) >= 3


def test_a_picture_of_its_packages_is_the_models(emoji):
    pipeline = Pipeline(Parts(open_checkpoint(MODEL)))
    for prompt in PROMPTS[:2]:  # Swift and transformers cut them alike
        wanted = Wanted(prompt=prompt, steps=STEPS, guidance=GUIDANCE)
        picture = make_picture(emoji, read_sd_manifest(emoji), wanted)
        assert psnr(picture, picture_of(pipeline, prompt)) >= 40


def test_a_picture_of_its_style_is_the_models_with_the_lora(emoji, fluent):
    def prepare(name, module):
        if name == "unet":
            fuse({name: module}, [(fluent.content, fluent.scale)])

    plain, tuned = (Pipeline(Parts(open_checkpoint(MODEL), prepare=p)) for p in (None, prepare))
    for prompt in PROMPTS[:2]:
        wanted = Wanted(prompt=prompt, steps=STEPS, guidance=GUIDANCE, function="fluent")
        picture = make_picture(emoji, read_sd_manifest(emoji), wanted)
        assert psnr(picture, picture_of(tuned, prompt)) >= 40
        assert psnr(picture, picture_of(plain, prompt)) < 25


def told_of(own, prompt):
    """What the U-Net is told of no prompt and of this one."""
    trial = Trial(own, Form(), (), 1, course=Course(prompt=prompt))
    made = next(trial.groups())
    trial.try_module(made, own.load(made[0]))
    unet = next(one for one in own.components(Form()) if one.name == "Unet")
    return trial.samples.told(unet)


def by_module(component, module):
    """A module of any precision as a package is run."""
    call = component.call(module)

    def run(given):
        dtype = module.conv_in.weight.dtype
        (noise,) = call(*(mx.array(given[name]).astype(dtype) for name in component.inputs))
        return np.array(noise)

    return run


def halfway(course, component, told, run):
    """The latents after half of the steps."""
    trajectory = Trajectory(
        course, component, told, scheduler=open_checkpoint(MODEL).scheduler_config,
        channels=8, is_guided=True,
    )  # fmt: skip
    steps = trajectory.latents(run)
    return next(islice(steps, course.steps // 2, None))


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
