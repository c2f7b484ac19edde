"""The same runs in diffusers, for the oracle tests and the goldens. Needs torch and diffusers."""

import inspect

import diffusers
import numpy as np
import torch

from tests.diffusion.schedulers.runs import CLASSES, predict

diffusers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)


def theirs(name, config, steps):
    class_name, forced = CLASSES[name]
    scheduler = getattr(diffusers, class_name).from_config(config, **forced)
    scheduler.set_timesteps(steps)
    if config.get("beta_schedule") == "squaredcos_cap_v2" and hasattr(scheduler, "set_begin_index"):
        # Its first two Karras timesteps round to one, which diffusers takes for the second.
        scheduler.set_begin_index(0)
    return scheduler


def torch_noise(seed=5):
    """Return what draws noise here as diffusers' `generator` argument draws it there."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator).numpy()


def run_theirs(scheduler, start, *, timesteps=None, seed=5, **arguments):
    """Return the sample of each step, and diffusers' estimate of the final one where it has it."""
    if "generator" in inspect.signature(scheduler.step).parameters:
        arguments["generator"] = torch.Generator().manual_seed(seed)
    sample, samples, estimates = torch.from_numpy(start), [], []
    for timestep in scheduler.timesteps if timesteps is None else timesteps:
        scaled = scheduler.scale_model_input(sample, timestep).numpy()
        output = torch.from_numpy(predict(scaled, float(timestep)))
        result = scheduler.step(output, timestep, sample, **arguments)
        sample = result.prev_sample
        samples.append(sample.numpy())
        estimate = getattr(result, "pred_original_sample", getattr(result, "denoised", None))
        estimates.append(None if estimate is None else estimate.numpy())
    return samples, estimates


def relative(ours, theirs):
    """Return the worst difference over a run, each step's as a share of its largest value."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if b is not None]
    return max((np.abs(a - b).max() / np.abs(b).max() for a, b in pairs), default=0.0)
