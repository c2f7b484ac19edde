"""Schedulers keep diffusers' goldens, refuse what they do not build, and start over when asked."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.random import Noise
from macai.diffusion.schedulers import SCHEDULERS, make_scheduler
from macai.diffusion.schedulers.base import thresholded
from macai.errors import ModelError, UsageError
from tests.diffusion.schedulers.runs import (
    CLASSES,
    CONFIGS,
    DPM,
    KEPT,
    SD15,
    SDXL,
    SHAPE,
    TURBO,
    ZERO_SNR,
    ours,
    predict,
    run,
    start_noise,
)

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "goldens" / "diffusion_schedulers.json").read_text("utf-8")
)
BAR = 1e-4
STOCHASTIC = ("euler-a", "dpm++sde", "lcm", "tcd")


def assert_ends_as(scheduler, golden):
    assert scheduler.timesteps == pytest.approx(golden["timesteps"], abs=1e-3)
    assert scheduler.init_noise_sigma == pytest.approx(golden["init_noise_sigma"], rel=1e-6)
    start = start_noise() * np.float32(scheduler.init_noise_sigma)
    samples, _ = run(scheduler, start, noise=Noise("torch", 5).normal)
    last = np.array(golden["last"])
    assert np.abs(samples[-1].reshape(-1)[KEPT] - last).max() <= BAR * np.abs(last).max()


@pytest.mark.parametrize("golden", GOLDEN["runs"], ids=lambda golden: golden["name"])
def test_a_run_ends_where_diffusers_ends_it(golden):
    config = CONFIGS[golden.get("model", "sd15")] | golden.get("options", {})
    scheduler = ours(golden["name"], config, golden["steps"], eta=golden.get("eta"))
    assert_ends_as(scheduler, golden)


@pytest.mark.parametrize("kind", ["pndm", "dpmpp"])
def test_apples_schedulers_end_where_diffusers_does_with_their_assumptions(kind):
    assert_ends_as(ours("swift", SD15 | {"swift_scheduler": kind}, 20), GOLDEN["swift"][kind])


def test_apples_multistep_scheduler_has_a_name_of_its_own():
    assert_ends_as(ours("swift-dpm++", SD15, 20), GOLDEN["swift"]["dpmpp"])


def test_the_names_are_those_of_the_command_line():
    names = "ddim pndm euler euler-a heun dpm++2m dpm++2m-karras dpm++sde unipc lcm tcd"
    assert list(SCHEDULERS) == [*names.split(), "swift", "swift-dpm++"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_mlx_and_numpy_arrays_step_alike(name):
    plain, mlx = ours(name, SD15, 6), ours(name, SD15, 6)
    start = start_noise() * np.float32(plain.init_noise_sigma)
    expected, _ = run(plain, start, noise=Noise("torch", 5).normal)
    got, estimates = run(mlx, start, noise=Noise("torch", 5).normal, wrap=mx.array)
    assert isinstance(mlx.x0, mx.array)
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
    assert estimates[-1].shape == SHAPE


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_forgets_a_run_when_told_to_and_when_planned_anew(name):
    scheduler = ours(name, SDXL, 5)
    start = start_noise()
    first, _ = run(scheduler, start, noise=Noise("torch", 5).normal)
    scheduler.reset()
    again, _ = run(scheduler, start, noise=Noise("torch", 5).normal)
    scheduler.set_timesteps(9, strength=0.7)
    run(scheduler, start, noise=Noise("torch", 6).normal)
    scheduler.set_timesteps(5)
    anew, _ = run(scheduler, start, noise=Noise("torch", 5).normal)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(anew, first)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_where_channels_stand_makes_no_difference(name):
    config = SD15 | {"thresholding": True, "sample_max_value": 2.0}
    first, last = ours(name, config, 5), ours(name, config, 5)
    sample = start_noise() * np.float32(first.init_noise_sigma)
    moved = np.moveaxis(sample, 1, -1)
    noise = Noise("torch", 5)
    drawn = {}

    def draw(shape):
        return drawn.setdefault(i, noise.normal(shape))

    def draw_moved(shape):
        return np.moveaxis(drawn[i], 1, -1)

    for i, timestep in enumerate(first.timesteps):
        output = predict(np.array(first.scale_model_input(sample, i)), timestep)
        sample = first.step(output, i, sample, noise=draw)
        moved = last.step(np.moveaxis(output, 1, -1), i, moved, noise=draw_moved)
    np.testing.assert_allclose(np.moveaxis(moved, -1, 1), sample, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_half_precision_predictions_give_samples_in_float32(name):
    scheduler = ours(name, SD15, 4)
    sample = mx.array(start_noise()).astype(mx.float16)
    noise = Noise("mlx", 1).normal
    for i in range(len(scheduler.timesteps)):
        sample = scheduler.step(sample.astype(mx.bfloat16), i, sample, noise=noise)
        assert sample.dtype == scheduler.x0.dtype == mx.float32


@pytest.mark.parametrize("name", ["euler", "heun", "dpm++2m", "dpm++2m-karras", "unipc", "lcm"])
def test_the_last_estimate_is_the_result_where_the_last_sigma_is_zero(name):
    samples, estimates = run(ours(name, SDXL, 8), start_noise(), noise=Noise("torch", 5).normal)
    np.testing.assert_allclose(samples[-1], estimates[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_that_knows_the_answer_is_led_to_it(name):
    """With a model that always predicts one picture's noise, deterministic runs end at it."""
    config = SDXL | {"set_alpha_to_one": True, "timestep_spacing": "trailing"}
    scheduler = ours(name, config, 12)
    picture = start_noise(21) / 4
    sample = scheduler.add_noise(picture, start_noise(22), 0)
    fresh = Noise("torch", 5).normal
    for i, _ in enumerate(scheduler.timesteps):
        signal, scale = scheduler.shares(i)
        noise = (sample - signal * picture) / scale
        sample = scheduler.step(noise, i, sample, noise=fresh)
        assert np.abs(scheduler.x0 - picture).max() < 2e-2
    # TCD ends at timestep 0, whose sigma is 0.03.
    assert np.abs(scheduler.decoded(sample) - picture).max() < (0.2 if name == "tcd" else 2e-2)


def test_karras_is_forced_by_the_name_and_carried_over_otherwise():
    assert make_scheduler("dpm++2m-karras", SDXL).options.use_karras_sigmas
    assert not make_scheduler("dpm++2m", SDXL).options.use_karras_sigmas
    karras = SDXL | {"use_karras_sigmas": True}
    assert make_scheduler("dpm++2m", karras).options.use_karras_sigmas
    exponential = SDXL | {"use_exponential_sigmas": True, "use_beta_sigmas": True}
    assert make_scheduler("dpm++2m-karras", exponential).options.use_karras_sigmas


def test_the_names_of_dpm_choose_the_algorithm_whatever_the_file_says():
    stochastic = DPM | {"algorithm_type": "sde-dpmsolver++"}
    assert make_scheduler("dpm++2m", stochastic).options.algorithm_type == "dpmsolver++"
    assert make_scheduler("dpm++sde", DPM).options.algorithm_type == "sde-dpmsolver++"
    assert make_scheduler(None, stochastic).options.algorithm_type == "sde-dpmsolver++"


def test_apples_scheduler_stands_for_the_models_class():
    assert make_scheduler("swift", SD15).options.swift_scheduler == "pndm"
    multistep = make_scheduler("swift", DPM | {"use_karras_sigmas": True}).options
    assert (multistep.swift_scheduler, multistep.swift_timestep_spacing) == ("dpmpp", "karras")
    assert make_scheduler("swift", {}).options.beta_end == 0.012


def test_apples_short_runs_end_with_two_steps_of_first_order():
    """A first-order step of DPM++ is one of DDIM, between the same two timesteps."""
    scheduler = ours("swift", SD15 | {"swift_scheduler": "dpmpp"}, 8)
    shares = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    sample = start_noise()
    ends = [*scheduler.timesteps[1:], 0]
    for i, (timestep, following) in enumerate(zip(scheduler.timesteps, ends, strict=True)):
        output = predict(sample, timestep)
        a, b = shares[timestep], shares[following]
        x0 = (sample - (1 - a) ** 0.5 * output) / a**0.5
        ddim = b**0.5 * x0 + (1 - b) ** 0.5 * output
        sample = scheduler.step(output, i, sample)
        assert (np.abs(sample - ddim).max() < 1e-3) == (i in (0, 6, 7))
        np.testing.assert_allclose(scheduler.decoded(sample), x0, rtol=1e-3, atol=1e-3)


def test_apples_plans_are_its_own():
    leading = {"swift_scheduler": "dpmpp", "swift_timestep_spacing": "leading"}
    assert ours("swift", leading, 19).timesteps[:2] == [932, 883]  # 1 + 19 * (999 // 20)
    assert ours("swift", {"swift_scheduler": "dpmpp"}, 4).timesteps == [999, 749, 500, 250]
    # A half is rounded away from zero, where NumPy rounds it to even: 832.5 here.
    assert ours("swift", {"swift_scheduler": "dpmpp"}, 18).timesteps[3] == 833
    assert ours("dpm++2m", {}, 18).timesteps[3] == 832
    assert ours("swift", SD15, 3).timesteps == [667, 334, 334, 1]
    # Its strength is a Float: 0.58 of 50 steps is 29 in float32, and 28 in float64.
    assert len(ours("swift", SD15, 50, strength=0.58).timesteps) == 30
    assert len(ours("ddim", SD15, 50, strength=0.58).timesteps) == 28


def test_a_refiner_begins_with_a_whole_step_of_heun():
    for share in (0.2, 0.5, 0.8):
        timesteps = ours("heun", SDXL, 10, denoising_start=share).timesteps
        assert len(timesteps) % 2 == 1
        assert timesteps[1:2] == timesteps[2:3]


def test_pndm_calls_the_second_timestep_twice():
    assert ours("pndm", SD15, 4).timesteps == [751, 501, 501, 251, 1]


def test_zero_terminal_snr_starts_from_pure_noise():
    scheduler = ours("ddim", ZERO_SNR, 4)
    assert scheduler.alphas_cumprod[-1] == 0
    assert scheduler.shares(0) == (0, 1)


def test_thresholding_scales_each_image_by_its_own_quantile():
    images = np.stack([np.linspace(-4, 4, 101), np.linspace(-0.5, 0.5, 101)]).astype(np.float32)
    result = thresholded(images, 0.5, 10.0)
    np.testing.assert_allclose(result[0], np.clip(images[0], -2, 2) / 2, rtol=1e-6)
    np.testing.assert_array_equal(result[1], images[1])
    np.testing.assert_array_equal(np.array(thresholded(mx.array(images), 0.5, 10.0)), result)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        (None, {"_class_name": "LMSDiscreteScheduler"}, "LMSDiscreteScheduler"),
        (None, {}, "_class_name = None"),
        ("euler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
        ("euler", {"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'"),
        ("euler", {"beta_start": "0.1"}, "beta_start = '0.1' is not a number"),
        ("ddim", {"clip_sample": "yes"}, "clip_sample = 'yes' is not true or false"),
        ("ddim", {"num_train_timesteps": 10.5}, "num_train_timesteps = 10.5"),
        ("ddim", {"trained_betas": [0.1, "x"]}, "trained_betas"),
        ("unipc", {"disable_corrector": [0.5]}, "disable_corrector"),
        ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas = True: beta sigmas need scipy"),
        ("dpm++2m", {"use_flow_sigmas": True}, "use_flow_sigmas = True: flow matching"),
        ("dpm++2m", {"prediction_type": "flow_prediction"}, "flow_prediction"),
        ("dpm++2m", {"variance_type": "learned"}, "variance_type = 'learned'"),
        ("dpm++2m", {"solver_order": 4}, "solver_order = 4"),
        (None, DPM | {"algorithm_type": "dpmsolver"}, "algorithm_type = 'dpmsolver'"),
        ("unipc", {"solver_p": {"_class_name": "DDIMScheduler"}}, "solver_p"),
        ("unipc", {"lower_order_final": False}, "lower_order_final"),
        ("unipc", {"predict_x0": False}, "predict_x0"),
        ("pndm", {"prediction_type": "sample"}, "prediction_type = 'sample'"),
        ("euler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "exclude"),
        ("lcm", {"original_inference_steps": 0}, "original_inference_steps = 0"),
        ("ddim", {"new_trick": 7}, "new_trick = 7"),
        ("swift", {"prediction_type": "v_prediction"}, "prediction_type = 'v_prediction'"),
        ("swift", {"beta_end": 0.02}, "betas"),
        ("swift", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_what_is_not_built_is_refused_by_key_and_value(name, config, words):
    with pytest.raises(ModelError) as caught:
        make_scheduler(name, config)
    assert words in str(caught.value)
    assert caught.value.hint


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ModelError, match=r"beta_end.*steps_offset.*new_trick"):
        make_scheduler("euler", {"beta_end": None, "steps_offset": 0.5, "new_trick": True})


def test_unknown_keys_that_are_off_and_other_classes_keys_do_no_harm():
    plain = make_scheduler("euler", SDXL)
    more = {"new_trick": False, "skip_prk_steps": True, "original_inference_steps": 50, "rho": 7}
    assert make_scheduler("euler", SDXL | more).options == plain.options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "0 steps"),
        ({"steps": 1001}, "1001 steps"),
        ({"steps": 10, "strength": 0.0}, "strength 0.0"),
        ({"steps": 10, "strength": 1.5}, "strength 1.5"),
        ({"steps": 10, "strength": 0.05}, "no step is left of 10"),
        ({"steps": 10, "denoising_start": 1.0}, "denoising_start 1.0"),
        ({"steps": 10, "denoising_end": 0.0}, "denoising_end 0.0"),
        ({"steps": 1000}, "timestep 1000 is beyond"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(UsageError) as caught:
        make_scheduler("ddim", SD15).set_timesteps(**arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "steps", "words"),
    [
        ("lcm", {}, 51, "distilled over 50"),
        ("unipc", SD15, 1000, "1000 steps fall on 999 timesteps"),
        ("dpm++2m", SDXL, 1000, "1000 steps fall on 1 timesteps"),
        ("pndm", {}, 3, "at least 4"),
        ("swift", SD15, 1, "1 step"),
        ("swift", {"swift_scheduler": "dpmpp", "swift_timestep_spacing": "karras"}, 1, "1 step"),
    ],
)
def test_a_scheduler_says_how_many_steps_it_takes(name, config, steps, words):
    with pytest.raises(UsageError) as caught:
        make_scheduler(name, config).set_timesteps(steps)
    assert words in str(caught.value)


def test_epsilon_cannot_start_where_no_signal_is_left():
    config = ZERO_SNR | {"prediction_type": "epsilon"}
    with pytest.raises(ModelError, match="prediction_type epsilon"):
        make_scheduler("ddim", config).set_timesteps(4)
    assert make_scheduler("euler", config).set_timesteps(4)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_a_share_and_for_those_that_have_one(eta):
    with pytest.raises(UsageError, match="between 0 and 1"):
        make_scheduler("ddim", SD15, eta=eta)
    with pytest.raises(UsageError, match="euler has no eta"):
        make_scheduler("euler", SD15, eta=0.5)
    assert make_scheduler("ddim", SD15).eta == 0
    assert make_scheduler("tcd", SD15).eta == 0.3
    assert make_scheduler("euler", SD15).eta is None


def test_an_unknown_name_is_answered_with_all_names():
    with pytest.raises(UsageError) as caught:
        make_scheduler("dpm", SD15)
    assert "dpm++2m-karras" in caught.value.hint


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_scheduler_that_adds_noise_asks_for_it(name):
    scheduler = ours(name, TURBO, 4)
    with pytest.raises(ValueError, match="pass noise="):
        scheduler.step(start_noise(), 0, start_noise())


def test_steps_are_taken_in_turn():
    scheduler = ours("euler", SDXL, 2)
    with pytest.raises(ValueError, match="step 0 is next"):
        scheduler.step(start_noise(), 1, start_noise())
    sample = scheduler.step(start_noise(), 0, start_noise())
    scheduler.step(start_noise(), 1, sample)
    with pytest.raises(ValueError, match="step 2 of 2"):
        scheduler.step(start_noise(), 2, sample)
