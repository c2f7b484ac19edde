import math

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.training.average import Average, decay_at
from macai.diffusion.training.noising import Noising, TimestepChoice
from macai.errors import ModelError
from tests.diffusion.tiny import SCHEDULER
from tests.diffusion.training.training_oracle import TIMES as TRAINED
from tests.diffusion.training.training_oracle import read_golden

TIMES = np.array([0, 1, 100, 500, 900, 999])


def noising(prediction="epsilon", **options):
    return Noising(SCHEDULER | {"prediction_type": prediction} | options)


def signals():
    """Share of signal at TIMES, by the definition alone."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.cumprod(1 - betas)[TIMES]


def test_noise_is_added_in_the_proportion_of_the_schedule():
    latents, noise = mx.ones((6, 2, 2, 4)), mx.zeros((6, 2, 2, 4))
    of_signal = noising().noisy(latents, noise, TIMES)[:, 0, 0, 0]
    of_noise = noising().noisy(noise, latents, TIMES)[:, 0, 0, 0]
    assert np.allclose(np.array(of_signal) ** 2, signals(), rtol=1e-4)
    assert np.allclose(np.array(of_signal) ** 2 + np.array(of_noise) ** 2, 1, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_prediction_type_says(prediction):
    mx.random.seed(0)
    latents, noise = mx.random.normal((6, 2, 2, 4)), mx.random.normal((6, 2, 2, 4))
    own = noising(prediction)
    target, noisy = own.target(latents, noise, TIMES), own.noisy(latents, noise, TIMES)
    a = mx.array(np.sqrt(signals())[:, None, None, None].astype(np.float32))
    s = mx.sqrt(1 - a * a)
    # From what is predicted and what is seen, the sample follows.
    sample = {
        "epsilon": (noisy - s * target) / a,
        "v_prediction": a * noisy - s * target,
        "sample": target,
    }[prediction]
    assert mx.allclose(sample, latents, atol=2e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_caps_the_weight_of_the_sample_s_error(prediction):
    snr = signals() / (1 - signals())
    # The same error of the sample is so much larger, or smaller, as one of noise or velocity.
    as_sample = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction]
    weights = noising(prediction).weights(TIMES, 5.0)
    assert weights.dtype == np.float32
    assert np.allclose(weights * as_sample, np.minimum(snr, 5), rtol=1e-3)
    assert noising(prediction).weights(TIMES, 0.0).tolist() == [1.0] * 6


@pytest.mark.parametrize("case", read_golden()["min_snr"])
def test_min_snr_is_that_of_diffusers(case):
    prediction, gamma = case.split()
    weights = noising(prediction).weights(TRAINED, float(gamma))
    assert np.allclose(weights, read_golden()["min_snr"][case], rtol=1e-4)


@pytest.mark.parametrize("decay", read_golden()["averages"])
def test_an_average_is_that_of_diffusers(decay):
    average = Average(mx.zeros(1), float(decay))
    for n, wanted in enumerate(read_golden()["averages"][decay], 1):
        average.add(mx.array([float(n**2)]), n)
        assert math.isclose(average.vector.item(), wanted, rel_tol=1e-5)


def test_min_snr_weighs_a_timestep_as_the_paper_says():
    betas = [0.5, 0.5]  # signal 0.5 and 0.25: SNR 1 and 1/3
    for prediction, wanted in (
        ("epsilon", [0.25, 0.75]),
        ("v_prediction", [0.125, 0.1875]),
        ("sample", [0.25, 0.25]),
    ):
        own = noising(prediction, trained_betas=betas, num_train_timesteps=2)
        assert np.allclose(own.weights(np.array([0, 1]), 0.25), wanted)


def test_no_signal_at_the_end_goes_with_velocity_and_not_with_noise():
    own = noising("v_prediction", rescale_betas_zero_snr=True)
    assert own.weights(np.array([999]), 5.0).tolist() == [0.0]
    with pytest.raises(ModelError, match="noise cannot be predicted"):
        noising("epsilon", rescale_betas_zero_snr=True)


def test_uniform_and_logit_normal_timesteps():
    uniform = TimestepChoice()
    assert [uniform.quantile(s, 0.0, 1000) for s in (0.0, 0.5, 0.9999, 1.0)] == [0, 500, 999, 999]
    middle = TimestepChoice(name="logit-normal", mean=0.0, std=1.0)
    assert [middle.quantile(0.9, n, 1000) for n in (-20, 0, 1, 20)] == [0, 500, 731, 999]
    assert TimestepChoice(name="logit-normal", mean=1.0, std=2.0).quantile(0, -0.5, 1000) == 500


def test_an_average_follows_its_formula():
    values = [mx.array([float(n), 1.0]) for n in range(5)]
    average = Average(values[0], 0.25)
    expected = np.array(values[0])
    for step, value in enumerate(values[1:], 1):
        average.add(value, step)
        kept = [0.0, 2 / 11, 0.25, 0.25][step - 1]  # (1 + n) / (10 + n), at most the decay
        expected = kept * expected + (1 - kept) * np.array(value)
    assert np.allclose(np.array(average.vector), expected)
    assert math.isclose(decay_at(10_000, 0.9999), (1 + 9999) / (10 + 9999))
