"""What a pipeline promises, on random weights; test_pipeline_oracle.py has diffusers'."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.latents import Latents, drawing, mask_for
from macai.diffusion.loading import open_checkpoint, save_folder
from macai.diffusion.make import Extras, enlarged, make
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.diffusion.random import Noise
from macai.errors import UsageError
from tests.diffusion.tiny import SIZE, tiny_models, tiny_pipeline_dir


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    return Pipeline(Parts(open_checkpoint(tiny_pipeline_dir(tmp_path_factory.mktemp("sd")))))


REQUEST = Request(prompt="a red apple", steps=4, seed=3)


def photo(count: int = 1) -> np.ndarray:
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE * 2 - 1
    return np.repeat(np.stack([x, y, -x], -1)[None].astype(np.float32), count, axis=0)


def result(pipeline: Pipeline, request: Request) -> mx.array:
    *_, last = pipeline.sample(request)
    return last.latents


def test_a_step_is_reported_for_each_call_of_the_model(pipeline):
    steps = list(pipeline.sample(replace(REQUEST, scheduler="heun")))
    assert [(s.done, s.total) for s in steps] == [(k, 7) for k in range(1, 8)]
    assert steps[-1].latents.shape == steps[-1].denoised.shape == (1, 16, 16, 4)


def test_pictures_of_a_batch_are_those_of_their_seeds(pipeline):
    options = {"scheduler": "euler-a", "picture": photo(), "strength": 0.7}
    together = result(pipeline, replace(REQUEST, count=3, **options))
    for k in range(3):
        alone = result(pipeline, replace(REQUEST, seed=3 + k, **options))
        assert mx.allclose(together[k], alone[0], atol=1e-4)


@pytest.fixture
def upper() -> np.ndarray:
    """A mask whose upper half is white."""
    mask = np.zeros((1, SIZE, SIZE, 1), np.float32)
    mask[:, : SIZE // 2] = 1
    return mask


def test_where_a_mask_is_black_the_latents_are_the_pictures(pipeline, upper):
    request = replace(REQUEST, picture=photo(), mask=upper, strength=1.0)
    made = result(pipeline, request)
    original = Latents(pipeline.parts.vae).encode(mx.array(photo()), [Noise("torch", 3)])
    assert mx.array_equal(made[:, 8:], original[:, 8:])
    assert not mx.allclose(made[:, :8], original[:, :8], atol=0.1)


def test_strength_decides_how_many_steps_are_left(pipeline):
    for strength, calls in ((0.25, 1), (0.5, 2), (1.0, 4)):
        steps = list(pipeline.sample(replace(REQUEST, picture=photo(), strength=strength)))
        assert len(steps) == calls


def test_a_latent_consistency_model_takes_all_its_steps_on_what_strength_leaves(tmp_path):
    folder = tiny_pipeline_dir(tmp_path / "lcm", time_cond_proj_dim=8)
    lcm = Pipeline(Parts(open_checkpoint(folder)))
    request = replace(REQUEST, scheduler="lcm", picture=photo(), strength=0.5)
    assert lcm._scheduler(request).timesteps == [499, 379, 259, 139]
    assert lcm._scheduler(replace(request, strength=1.0)).timesteps == [999, 759, 499, 259]
    assert len(list(lcm.sample(request))) == 4
    assert len(list(lcm.sample(replace(request, scheduler="ddim")))) == 2
    with pytest.raises(UsageError, match=r"a strength of 0\.06 leaves 3"):
        lcm.check(replace(request, strength=0.06))


def test_a_refiner_holds_to_the_mask(pipeline, upper, tmp_path):
    second = Pipeline(Parts(open_checkpoint(tiny_pipeline_dir(tmp_path / "second", seed=1))))
    request = replace(REQUEST, picture=photo(), mask=upper, strength=1.0)
    steps = list(make(pipeline, request, Extras(refiner=second, handover=0.5)))
    assert [s.phase for s in steps] == ["image"] * 2 + ["refiner"] * 2
    original = Latents(second.parts.vae).encode(mx.array(photo()), [Noise("torch", 3)])
    assert mx.array_equal(steps[-1].step.latents[:, 8:], original[:, 8:])
    base = result(pipeline, request)
    assert not mx.allclose(steps[-1].step.latents[:, :8], base[:, :8], atol=0.1)


def test_a_second_pass_holds_to_the_mask(pipeline, upper):
    request = replace(REQUEST, picture=photo(), mask=upper)
    *_, last = make(pipeline, request, Extras(enlarge=2, enlarge_strength=1))
    first = pipeline.decode(result(pipeline, request))
    larger = mx.array(enlarged(first, 2 * SIZE, 2 * SIZE))
    original = Latents(pipeline.parts.vae).encode(larger, [Noise("torch", 3)])
    assert last.phase == "enlarge"
    assert mx.allclose(last.step.latents[:, 16:], original[:, 16:], atol=1e-5)
    assert not mx.allclose(last.step.latents[:, :16], original[:, :16], atol=0.1)


def test_every_pass_is_checked_before_the_first(pipeline):
    passes = Extras(refiner=pipeline, handover=0.5, enlarge=2, enlarge_strength=0.1)
    with pytest.raises(UsageError, match="no step is left of 4"):
        next(make(pipeline, REQUEST, passes))
    with pytest.raises(UsageError, match="no step is left of 1"):
        next(make(pipeline, replace(REQUEST, steps=1), replace(passes, enlarge=1)))
    assert len(list(make(pipeline, REQUEST, replace(passes, enlarge_strength=0.5)))) == 6


def test_serial_guidance_is_batched_guidance(pipeline):
    batched = result(pipeline, REQUEST)
    serial = result(Pipeline(pipeline.parts, serial=True), REQUEST)
    assert mx.allclose(batched, serial, atol=1e-4)


def test_no_guidance_does_not_read_the_negative_prompt(pipeline):
    one = replace(REQUEST, guidance=1.0)
    assert mx.array_equal(result(pipeline, replace(one, negative="rain")), result(pipeline, one))
    guided = replace(REQUEST, guidance=3.0)
    assert not mx.allclose(
        result(pipeline, replace(guided, negative="rain")), result(pipeline, guided), atol=1e-3
    )


def test_what_is_let_go_is_loaded_again(tmp_path):
    folder = tiny_pipeline_dir(tmp_path / "model")
    short = Pipeline(Parts(open_checkpoint(folder), short_memory=True))
    first = short.decode(result(short, REQUEST))
    assert set(short.parts._loaded) == {"vae"}
    assert np.array_equal(first, short.decode(result(short, REQUEST)))


def test_an_autoencoder_that_overflows_float16_is_not_computed_in_it(tmp_path):
    models, dtypes = tiny_models(), {}
    for overflows in (False, True):
        configs = models.configs | {"vae": models.configs["vae"] | {"force_upcast": overflows}}
        save_folder(replace(models, configs=configs), tmp_path / str(overflows))
        for dtype in ("float16", "bfloat16"):
            half = Pipeline(Parts(open_checkpoint(tmp_path / str(overflows), dtype=dtype)))
            assert np.isfinite(half.decode(result(half, REQUEST))).all()
            weights = half.parts.unet.conv_in.weight, half.parts.vae.decoder.conv_in.weight
            dtypes[overflows, dtype] = [str(w.dtype).removeprefix("mlx.core.") for w in weights]
    assert dtypes == {
        (False, "float16"): ["float16", "float16"],
        (True, "float16"): ["float16", "float32"],
        (False, "bfloat16"): ["bfloat16", "bfloat16"],
        (True, "bfloat16"): ["bfloat16", "bfloat16"],
    }


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mask": np.ones((1, SIZE, SIZE, 1), np.float32)}, "a mask without a picture"),
        ({"width": SIZE + 1}, "multiples of 2"),
        ({"height": 0}, "multiples of 2"),
        ({"count": 0}, "at least 1"),
        ({"picture": photo(), "strength": 0.0}, "strength"),
        ({"eta": 2.0}, "eta"),
        ({"clip_skip": 3}, "the text encoder has 2 layers"),
        ({"seed": 1 << 64}, "seed 18446744073709551616"),
    ],
)
def test_a_request_that_cannot_be_is_refused(pipeline, changed, says):
    with pytest.raises(UsageError, match=says):
        list(pipeline.sample(replace(REQUEST, **changed)))


def test_scaled_latents_are_restored(pipeline):
    z = mx.random.normal((1, 4, 4, 4))
    scaled = Latents(pipeline.parts.vae)
    assert mx.allclose(scaled.restore(scaled.normalise(z)), z, atol=1e-5)


def test_noise_is_drawn_in_the_order_of_torch():
    drawn = drawing([Noise("torch", 1)])((1, 2, 3, 4))
    as_torch = Noise("torch", 1).normal((1, 4, 2, 3))
    assert np.array_equal(drawn, as_torch.transpose(0, 2, 3, 1))


def test_a_mask_is_taken_at_the_nearest_pixel():
    mask = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1)
    assert mask_for(mask, 2, 4)[0, :, :, 0].tolist() == [[0, 2, 4, 6], [32, 34, 36, 38]]
