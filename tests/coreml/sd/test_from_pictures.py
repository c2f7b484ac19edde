"""Pictures from pictures, masks and controls: the packages, beside MLX in Swift's order."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.picture import Wanted, make_picture
from macai.coreml.sd.verify import psnr
from macai.diffusion.denoise import denoise
from macai.diffusion.latents import Latents, drawing, mask_for
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.diffusion.predict import Control
from macai.diffusion.random import Noise
from macai.diffusion.schedulers import make_scheduler
from macai.errors import PackageError, UsageError
from tests.coreml.sd.bundles import controlnet, export_tiny
from tests.diffusion.tiny import tiny_pipeline_dir

PROMPT, STEPS, STRENGTH = "two red apples", 3, 0.7


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return controlnet(tmp_path_factory.mktemp("net") / "edges")


@pytest.fixture(scope="module")
def controlled(model, net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlled") / "tiny"
    export_tiny(model, folder, controlnets=[net, replace(net, name="Lines")], timesteps=0)
    return folder


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    """A model for inpainting, and its bundle."""
    folder = tmp_path_factory.mktemp("painter")
    model = tiny_pipeline_dir(folder / "m", in_channels=9)
    export_tiny(model, folder / "b", timesteps=0)
    return model, folder / "b"


def shown(seed=0):
    """A picture, float32 [1, 32, 32, 3] in [-1, 1]."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    waves = [np.sin((k + 1 + seed) * x + 2 * y) for k in range(3)]
    return np.stack(waves, axis=-1)[None].astype(np.float32)


def half():
    """A mask of the right half."""
    mask = np.zeros((1, 32, 32, 1), np.float32)
    mask[:, :, 16:] = 1
    return mask


def expected(model, *, picture=None, mask=None, strength=STRENGTH, controls=()):
    """What MLX makes of it, with noise and latents drawn as Swift draws them."""
    pipeline = Pipeline(Parts(open_checkpoint(model)))
    request = Request(prompt=PROMPT, negative="", controls=controls)
    scaled, source = Latents(pipeline.parts.vae), Noise("numpy", 0)
    scheduler = make_scheduler("swift", pipeline.parts.scheduler_config)
    scheduler.set_timesteps(STEPS, strength=None if picture is None else strength)
    noise = mx.array(drawing([source])((1, 16, 16, 4)))
    latents, extra = noise, None
    if picture is not None and not (mask is not None and strength == 1):
        original = scaled.encode(mx.array(picture), [source])
        latents = scheduler.add_noise(original, noise, 0)
    if mask is not None:
        masked = pipeline.parts.vae.encode(mx.array(picture * (mask < 0.5))).mean
        extra = mx.concatenate([mask_for(mask, 16, 16), scaled.normalise(masked)], axis=-1)
    predict = replace(pipeline.predictor(request, 32, 32), extra=extra)
    *_, last = denoise(predict, scheduler, latents, noise=drawing([source]))
    return pipeline.decode(scheduler.decoded(last.latents))


def made(bundle, **options):
    wanted = Wanted(
        prompt=PROMPT, steps=STEPS, strength=options.pop("strength", STRENGTH), **options
    )
    return make_picture(bundle, read_sd_manifest(bundle), wanted)


def test_a_picture_is_where_it_starts_from(bundle, model):
    picture = made(bundle, picture=shown())
    assert psnr(picture, expected(model, picture=shown())) > 60
    assert psnr(picture, expected(model)) < 30
    weak = made(bundle, picture=shown(), strength=0.4)
    assert psnr(weak, expected(model, picture=shown(), strength=0.4)) > 60
    assert psnr(weak, picture) < 55


def test_a_unet_for_inpainting_sees_mask_and_picture(painter):
    model, bundle = painter
    for strength in (STRENGTH, 1.0):
        options = {"picture": shown(), "mask": half(), "strength": strength}
        assert psnr(made(bundle, **options), expected(model, **options)) > 60
    other = made(bundle, picture=shown(1), mask=half(), strength=1.0)
    assert psnr(other, expected(model, picture=shown(), mask=half(), strength=1.0)) < 55


@pytest.mark.slow
def test_controlnets_are_heeded_and_their_residuals_added(controlled, model, net):
    control = (shown() + 1) / 2
    module = net.checkpoint.load("controlnet", dtype="float32")
    one = Control(net=module, picture=mx.array(control))
    single = made(controlled, controls={"Edges": control})
    assert psnr(single, expected(model, controls=[one])) > 55
    assert psnr(single, made(controlled)) < 55
    both = made(controlled, controls={"Edges": control, "Lines": control})
    assert psnr(both, expected(model, controls=[one, one])) > 55
    assert psnr(both, single) < 55


@pytest.mark.slow
def test_one_row_at_a_time_heeds_a_controlnet_likewise(model, net, controlled, tmp_path):
    export_tiny(model, tmp_path / "b", controlnets=[net], batch=1, timesteps=0)
    control = (shown() + 1) / 2
    alone = made(tmp_path / "b", controls={"": control})
    assert psnr(alone, made(controlled, controls={"Edges": control})) > 60


def test_what_a_bundle_cannot_do_is_refused(bundle, controlled):
    with pytest.raises(UsageError, match="does not see a mask"):
        made(bundle, picture=shown(), mask=half())
    with pytest.raises(UsageError, match="a mask without a picture"):
        made(bundle, mask=half())
    with pytest.raises(PackageError, match="which ControlNet") as error:
        made(bundle, controls={"": shown()})
    assert "--controlnet PATH" in error.value.hint
    with pytest.raises(PackageError, match="no ControlNet 'Depth'") as error:
        made(controlled, controls={"Depth": shown()})
    assert "Edges, Lines" in error.value.hint
