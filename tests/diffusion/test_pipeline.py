"""What a pipeline promises, on random weights; test_pipeline_oracle.py has diffusers'."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.latents import Latents, drawing, mask_for
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.diffusion.random import Noise
from macai.errors import UsageError
from tests.diffusion.tiny import SIZE, tiny_pipeline_dir


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


def test_where_a_mask_is_black_the_latents_are_the_pictures(pipeline):
    mask = np.zeros((1, SIZE, SIZE, 1), np.float32)
    mask[:, : SIZE // 2] = 1
    request = replace(REQUEST, picture=photo(), mask=mask, strength=1.0)
    made = result(pipeline, request)
    original = Latents(pipeline.parts.vae).encode(mx.array(photo()), [Noise("torch", 3)])
    assert mx.array_equal(made[:, 8:], original[:, 8:])
    assert not mx.allclose(made[:, :8], original[:, :8], atol=0.1)


def test_strength_decides_how_many_steps_are_left(pipeline):
    for strength, calls in ((0.25, 1), (0.5, 2), (1.0, 4)):
        steps = list(pipeline.sample(replace(REQUEST, picture=photo(), strength=strength)))
        assert len(steps) == calls


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


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mask": np.ones((1, SIZE, SIZE, 1), np.float32)}, "a mask without a picture"),
        ({"width": SIZE + 1}, "multiples of 2"),
        ({"height": 0}, "multiples of 2"),
        ({"count": 0}, "at least 1"),
        ({"picture": photo(), "strength": 0.0}, "strength"),
        ({"eta": 2.0}, "eta"),
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
