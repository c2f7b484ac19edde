"""Runs over an analytic model, and the configs that models are published with."""

import numpy as np

from macai.diffusion.schedulers import make_scheduler

SHAPE = (2, 4, 8, 8)
KEPT = slice(None, None, 16)  # of a flattened sample, what the goldens hold
MIX = np.random.RandomState(11).standard_normal((4, 4)).astype(np.float32)

SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SD21_V = SD15 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
SDXL = SD15 | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
TURBO = SDXL | {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "timestep_spacing": "trailing",
    "sigma_max": None,
    "sigma_min": None,
    "timestep_type": "discrete",
    "rescale_betas_zero_snr": False,
}
LCM = {
    "_class_name": "LCMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
ZERO_SNR = SD21_V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
DPM = SDXL | {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "lambda_min_clipped": -5.1,
    "dynamic_thresholding_ratio": 0.995,
    "thresholding": False,
    "variance_type": None,
}
COSINE = {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"}
CONFIGS = {
    "sd15": SD15,
    "sd21-v": SD21_V,
    "sdxl": SDXL,
    "turbo": TURBO,
    "lcm": LCM,
    "zero-snr": ZERO_SNR,
    "dpm": DPM,
    "cosine": COSINE,
}

# Of each name: the class in diffusers, and what is passed to its from_config.
CLASSES = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++2m-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


def predict(sample: np.ndarray, timestep: float) -> np.ndarray:
    """A smooth, bounded stand-in for a U-Net: float32 of the shape of `sample`, [B, 4, H, W]."""
    mixed = np.einsum("cd,bdhw->bchw", MIX, sample)
    return np.tanh(0.5 * mixed + np.float32(timestep / 1000)).astype(np.float32)


def start_noise(seed: int = 3) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(SHAPE).astype(np.float32)


def run(scheduler, start, *, noise=None, wrap=np.asarray):
    """Run from `start`, as noisy as the first timestep; return each step's sample and estimate."""
    sample, samples, estimates = wrap(start), [], []
    for i, timestep in enumerate(scheduler.timesteps):
        scaled = np.array(scheduler.scale_model_input(sample, i))
        sample = scheduler.step(wrap(predict(scaled, timestep)), i, sample, noise=noise)
        samples.append(np.array(sample))
        estimates.append(np.array(scheduler.x0))
    return samples, estimates


def ours(name, config, steps, *, eta=None, **window):
    scheduler = make_scheduler(name, config, eta=eta)
    scheduler.set_timesteps(steps, **window)
    return scheduler
