"""Plans and whole runs are those of diffusers, over an analytic model and from the same noise."""

from types import SimpleNamespace

import numpy as np
import pytest

from macai.diffusion.schedulers import SCHEDULERS, make_scheduler, tables
from macai.diffusion.schedulers.ddim import DDIMOptions
from macai.diffusion.schedulers.heun import HeunOptions
from macai.errors import ModelError
from tests.diffusion.schedulers.runs import (
    CLASSES,
    CONFIGS,
    DPM,
    LCM,
    SD15,
    SD21_V,
    SDXL,
    SHAPE,
    TURBO,
    ZERO_SNR,
    ours,
    run,
    start_noise,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
other = pytest.importorskip("tests.diffusion.schedulers.theirs")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]

BAR = 1e-4
# float32 linspace differs in its last bit between processors, and a float timestep with it.
TIMESTEP_ULP = 1e-4
PLAIN = {key: value for key, value in SD15.items() if key != "_class_name"}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
NO_SAMPLE = ("pndm", "euler-a")  # diffusers' classes cannot predict the sample


def assert_same_plan(mine, theirs):
    assert len(mine.timesteps) == len(theirs.timesteps)
    assert np.abs(np.array(mine.timesteps) - theirs.timesteps.numpy()).max() <= TIMESTEP_ULP
    whole = not theirs.timesteps.dtype.is_floating_point
    assert all(isinstance(timestep, int) == whole for timestep in mine.timesteps)
    if mine.sigmas:
        np.testing.assert_allclose(mine.sigmas, theirs.sigmas.numpy(), rtol=5e-6)
    assert mine.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)


def assert_same_run(name, config, steps, *, eta=None, **more):
    """Compare the plan, each step's sample and each estimate of the final one, from pure noise."""
    mine = ours(name, config | more, steps, eta=eta)
    theirs = other.theirs(name, config | more, steps)
    assert_same_plan(mine, theirs)
    start = start_noise() * np.float32(mine.init_noise_sigma)
    samples, estimates = run(mine, start, noise=other.torch_noise())
    arguments = {} if eta is None else {"eta": eta}
    their_samples, their_estimates = other.run_theirs(theirs, start, **arguments)
    assert np.isfinite(their_samples[-1]).all()
    assert other.relative(samples, their_samples) <= BAR
    assert other.relative(estimates, their_estimates) <= BAR


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", CLASSES)
def test_plans_and_runs_of_any_length_are_those_of_diffusers(name, spacing, prediction):
    if prediction == "sample" and name in NO_SAMPLE:
        pytest.skip("diffusers cannot either")
    config = PLAIN | {"prediction_type": prediction, "timestep_spacing": spacing}
    for steps in (1, 2, 4, 20, 50):
        for karras in (False, True):
            assert_same_run(name, config, steps, use_karras_sigmas=karras)


@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize("name", CLASSES)
def test_any_models_config_is_read_as_diffusers_reads_it_for_any_class(name, model):
    config = CONFIGS[model]
    if model == "zero-snr" and name in ("euler-a", "heun", "pndm"):
        config = config | {"timestep_spacing": "leading"}
    assert_same_run(name, config, 20)


@pytest.mark.parametrize("model", CONFIGS)
def test_without_a_name_the_models_own_class_runs_with_its_own_options(model):
    config = CONFIGS[model]
    steps = 8
    mine = make_scheduler(None, config)
    mine.set_timesteps(steps)
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    theirs.set_timesteps(steps)
    start = start_noise() * np.float32(mine.init_noise_sigma)
    samples, _ = run(mine, start, noise=other.torch_noise())
    assert_same_plan(mine, theirs)
    assert other.relative(samples, other.run_theirs(theirs, start)[0]) <= BAR


def test_defaults_that_a_class_filled_in_are_not_carried_to_another():
    live = diffusers.EulerDiscreteScheduler.from_config({"beta_schedule": "scaled_linear"}).config
    assert live["timestep_spacing"] == "linspace"
    assert_same_run("ddim", dict(live), 10)
    assert make_scheduler("ddim", dict(live)).options.timestep_spacing == "leading"


def test_no_option_of_a_scheduler_of_diffusers_is_unknown_here():
    compatible = diffusers.EulerDiscreteScheduler._get_compatibles()
    # Those of optional packages are dummies without options.
    classes = [each for each in compatible if issubclass(each, diffusers.SchedulerMixin)]
    assert len(classes) > 10
    for each in [*classes, diffusers.LCMScheduler, diffusers.TCDScheduler]:
        keys = set(each._get_init_keys(each)) - {"self", "args", "kwargs"}
        with pytest.raises(ModelError) as caught:
            make_scheduler("euler", dict.fromkeys(keys, object()) | {"beta_end": "wrong"})
        assert "beta_end" in str(caught.value)
        assert "no scheduler here has" not in str(caught.value)


OPTIONS = [
    ("ddim", {"clip_sample": True, "clip_sample_range": 0.8}),
    ("ddim", {"thresholding": True, "sample_max_value": 1.5}),
    ("ddim", {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.7}),
    ("ddim", {"set_alpha_to_one": True}),
    ("ddim", {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()}),
    ("ddim", {"num_train_timesteps": 500}),
    ("ddim", {"beta_schedule": "linear", "steps_offset": 3}),
    ("pndm", {"skip_prk_steps": False}),
    ("pndm", {"skip_prk_steps": False, "prediction_type": "v_prediction"}),
    ("pndm", {"set_alpha_to_one": True}),
    ("euler", {"interpolation_type": "log_linear", "timestep_spacing": "linspace"}),
    ("euler", {"prediction_type": "v_prediction", "timestep_type": "continuous"}),
    ("euler", {"timestep_type": "continuous"}),
    ("euler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
    ("euler", {"use_exponential_sigmas": True}),
    ("euler", {"final_sigmas_type": "sigma_min"}),
    ("euler", {"prediction_type": "original_sample"}),
    ("heun", {"clip_sample": True}),
    ("heun", {"beta_schedule": "exp", "timestep_spacing": "leading"}),
    ("heun", {"use_exponential_sigmas": True}),
    ("heun", {"use_karras_sigmas": True, "sigma_max": 9.0}),
    ("dpm++2m", {"solver_order": 1}),
    ("dpm++2m", {"solver_order": 3}),
    ("dpm++2m", {"solver_type": "heun"}),
    ("dpm++2m", {"solver_type": "bh1"}),
    ("dpm++2m", {"solver_order": 3, "lower_order_final": False}),
    ("dpm++2m", {"euler_at_final": True, "final_sigmas_type": "sigma_min"}),
    ("dpm++2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("dpm++2m", {"use_lu_lambdas": True}),
    ("dpm++2m", {"use_exponential_sigmas": True}),
    ("dpm++2m", {"lambda_min_clipped": -2.0}),
    ("dpm++2m", {"lambda_min_clipped": -2.0, "timestep_spacing": "trailing"}),
    ("dpm++2m", {"thresholding": True}),
    ("dpm++2m", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("dpm++2m-karras", {"final_sigmas_type": "sigma_min"}),
    ("dpm++2m-karras", {"sigma_min": 0.1, "sigma_max": 10.0}),
    ("dpm++sde", {"solver_order": 1}),
    ("dpm++sde", {"solver_order": 3}),
    ("dpm++sde", {"solver_type": "heun"}),
    ("dpm++sde", {"use_karras_sigmas": True}),
    ("dpm++sde", {"final_sigmas_type": "sigma_min"}),
    ("unipc", {"solver_order": 1}),
    ("unipc", {"solver_order": 3}),
    # bh1 down to sigma zero is NaN in diffusers.
    (
        "unipc",
        {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    ),
    ("unipc", {"solver_type": "midpoint"}),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    (
        "unipc",
        {"predict_x0": False, "final_sigmas_type": "sigma_min", "prediction_type": "v_prediction"},
    ),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_order": 3}),
    ("unipc", {"disable_corrector": [0, 1, 5]}),
    ("unipc", {"use_exponential_sigmas": True}),
    ("unipc", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("unipc", {"thresholding": True, "sample_max_value": 2.0}),
    ("unipc", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("lcm", {"original_inference_steps": 100}),
    ("lcm", {"timestep_scaling": 0.002}),
    ("lcm", {"clip_sample": True}),
    ("lcm", {"thresholding": True}),
    ("tcd", {"original_inference_steps": 40}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_an_option_does_what_it_does_in_diffusers(name, options):
    for steps in (6, 20):
        assert_same_run(name, PLAIN, steps, **options)


# Words for a default, and Karras sigmas without their last place to differ in.
SAME = ({"solver_type": "bh1"}, {"solver_type": "midpoint"}, {"timestep_type": "continuous"})


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name, options in OPTIONS if options not in SAME],
)
def test_each_of_those_options_changes_the_run(name, options):
    lasts = []
    for config in (PLAIN, PLAIN | options):
        scheduler = ours(name, config, 6)
        start = start_noise() * np.float32(scheduler.init_noise_sigma)
        lasts.append(run(scheduler, start, noise=other.torch_noise())[0][-1])
    assert np.abs(lasts[0] - lasts[1]).max() > 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddims_fresh_noise_is_diffusers(eta):
    for prediction in PREDICTIONS:
        assert_same_run("ddim", SD15 | {"prediction_type": prediction}, 20, eta=eta)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_tcds_fresh_noise_is_diffusers(eta):
    for steps in (1, 4, 20):
        assert_same_run("tcd", SDXL, steps, eta=eta)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, DDIMOptions),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, DDIMOptions),
        ({"beta_schedule": "squaredcos_cap_v2"}, DDIMOptions),
        ({"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}, DDIMOptions),
        ({"trained_betas": tuple(np.linspace(0.001, 0.1, 50))}, DDIMOptions),
        ({"beta_schedule": "exp"}, HeunOptions),
    ],
)
def test_the_share_of_signal_is_diffusers_at_every_training_step(options, kind):
    theirs = getattr(diffusers, kind.class_name)(**options).alphas_cumprod.numpy()
    np.testing.assert_allclose(tables.alphas_cumprod(kind(**options)), theirs, rtol=2e-5, atol=1e-9)


def img2img_window(scheduler, steps, strength):
    """Return the timesteps that diffusers' image-to-image pipeline runs."""
    pipeline = diffusers.StableDiffusionImg2ImgPipeline
    timesteps, _ = pipeline.get_timesteps(
        SimpleNamespace(scheduler=scheduler), steps, strength, "cpu"
    )
    return timesteps


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.58, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("name", CLASSES)
def test_image_to_image_starts_where_diffusers_starts_and_runs_the_same(name, strength):
    for config in (SD15, SDXL | {"use_karras_sigmas": True}, TURBO):
        mine = ours(name, config, 20, strength=strength)
        theirs = other.theirs(name, config, 20)
        timesteps = img2img_window(theirs, 20, strength)
        assert np.abs(np.array(mine.timesteps) - timesteps.numpy()).max() <= TIMESTEP_ULP
        image, noise = start_noise(8), start_noise(9)
        start = theirs.add_noise(torch.tensor(image), torch.tensor(noise), timesteps[:1]).numpy()
        np.testing.assert_allclose(mine.add_noise(image, noise, 0), start, rtol=1e-5, atol=1e-5)
        samples, _ = run(mine, start, noise=other.torch_noise())
        their_samples, _ = other.run_theirs(theirs, start, timesteps=timesteps)
        assert other.relative(samples, their_samples) <= BAR


@pytest.mark.parametrize("name", CLASSES)
def test_noise_is_added_as_diffusers_adds_it_at_each_timestep_of_a_run(name):
    """As inpainting does after each step, when diffusers' schedulers count along."""
    mine, theirs = ours(name, SDXL, 9, strength=0.9), other.theirs(name, SDXL, 9)
    timesteps = img2img_window(theirs, 9, 0.9)
    image, noise = torch.tensor(start_noise(8)), torch.tensor(start_noise(9))
    sample = torch.zeros(SHAPE)
    for i, timestep in enumerate(timesteps):
        expected = theirs.add_noise(image, noise, timestep[None]).numpy()
        np.testing.assert_allclose(
            mine.add_noise(image.numpy(), noise.numpy(), i), expected, rtol=1e-5, atol=1e-5
        )
        theirs.scale_model_input(sample, timestep)
        theirs.step(sample, timestep, sample)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", CLASSES)
def test_a_refiner_takes_over_where_diffusers_lets_it(name, share):
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline
    for steps in (5, 20):
        theirs = other.theirs(name, SDXL, steps)
        refined, _ = pipeline.get_timesteps(
            SimpleNamespace(scheduler=theirs), steps, 0.3, "cpu", denoising_start=share
        )
        mine = ours(name, SDXL, steps, denoising_start=share)
        assert np.abs(np.array(mine.timesteps) - refined.numpy()).max() <= TIMESTEP_ULP
        start = start_noise(4)
        samples, _ = run(mine, start, noise=other.torch_noise())
        their_samples, _ = other.run_theirs(theirs, start, timesteps=refined)
        assert other.relative(samples, their_samples) <= BAR
        cutoff = round(1000 - share * 1000)
        base = [t for t in other.theirs(name, SDXL, steps).timesteps.tolist() if t >= cutoff]
        mine = ours(name, SDXL, steps, denoising_end=share)
        assert mine.timesteps == pytest.approx(base)


def test_apples_pndm_runs_as_diffusers_does_with_stable_diffusions_config():
    for steps in (2, 5, 20, 50):
        mine, theirs = ours("swift", SD15, steps), other.theirs("pndm", SD15, steps)
        assert mine.timesteps == theirs.timesteps.tolist()
        start = start_noise()
        samples, _ = run(mine, start)
        assert other.relative(samples, other.run_theirs(theirs, start)[0]) <= BAR


@pytest.mark.parametrize(
    ("spacing", "options", "lengths"),
    [
        ("linspace", {"timestep_spacing": "linspace"}, (15, 20, 50)),
        # 999 // (steps + 1) there and 1000 // (steps + 1) here, which only 19 steps tell apart.
        ("leading", {"timestep_spacing": "leading"}, (15, 20, 50)),
        ("karras", {"use_karras_sigmas": True}, (15, 20, 30)),
    ],
)
def test_apples_dpm_runs_as_diffusers_does_down_to_the_least_sigma(spacing, options, lengths):
    choices = {"swift_scheduler": "dpmpp", "swift_timestep_spacing": spacing}
    for steps in lengths:
        mine = ours("swift", SD15 | choices, steps)
        config = PLAIN | {"final_sigmas_type": "sigma_min"} | options
        theirs = other.theirs("dpm++2m", config, steps)
        assert mine.timesteps == theirs.timesteps.tolist()
        start = start_noise()
        samples, _ = run(mine, start)
        their_samples, _ = other.run_theirs(theirs, start)
        assert other.relative(samples, their_samples) <= BAR


def test_every_name_but_apples_is_compared():
    assert {*CLASSES, "swift", "swift-dpm++"} == set(SCHEDULERS)
    assert {
        "dpm": DPM,
        "lcm": LCM,
        "sd21-v": SD21_V,
        "zero-snr": ZERO_SNR,
    }.items() <= CONFIGS.items()
