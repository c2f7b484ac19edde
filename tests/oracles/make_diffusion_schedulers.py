"""Write tests/goldens/diffusion_schedulers.json: plans and ends of runs by diffusers.

    PYTHONPATH=. python tests/oracles/make_diffusion_schedulers.py

The oracle is diffusers with torch on the CPU; their versions are in the golden. A run goes from the
noise and over the analytic model of tests/diffusion/schedulers/runs.py; of its last sample every
16th number is kept. Fresh noise is torch.randn's of seed 5.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

from tests.diffusion.schedulers.runs import CLASSES, CONFIGS, KEPT, SD15, ZERO_SNR, start_noise
from tests.diffusion.schedulers.theirs import run_theirs, theirs

GOLDEN = Path(__file__).parent.parent / "goldens" / "diffusion_schedulers.json"
MODELS = ("sd15", "sd21-v", "sdxl", "turbo", "lcm")
STEPS = (4, 18)
OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("ddim", {"thresholding": True, "sample_max_value": 1.5}),
    ("ddim", {"beta_schedule": "squaredcos_cap_v2"}),
    ("ddim", ZERO_SNR),
    ("euler", ZERO_SNR),
    ("euler", {"use_exponential_sigmas": True}),
    ("euler", {"interpolation_type": "log_linear"}),
    ("heun", {"use_karras_sigmas": True, "sigma_min": 0.05}),
    ("dpm++2m", {"solver_order": 3}),
    ("dpm++2m", {"solver_type": "heun", "use_lu_lambdas": True}),
    ("dpm++2m", {"lambda_min_clipped": -2.0, "euler_at_final": True}),
    ("dpm++sde", {"solver_type": "heun"}),
    ("unipc", {"solver_order": 3, "disable_corrector": [0, 3]}),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("lcm", {"timestep_scaling": 0.002}),
]
ETAS = (("ddim", 0.6), ("tcd", 0.8))


def end(name: str, config: dict[str, object], steps: int, **eta: float) -> dict[str, object]:
    """Return the plan of one run, and the numbers kept of its last sample."""
    scheduler = theirs(name, config, steps)
    start = start_noise() * np.float32(scheduler.init_noise_sigma)
    samples, _ = run_theirs(scheduler, start, **eta)
    return {
        "timesteps": [round(float(timestep), 3) for timestep in scheduler.timesteps],
        "init_noise_sigma": float(scheduler.init_noise_sigma),
        "last": [float(f"{value:.7g}") for value in samples[-1].reshape(-1)[KEPT]],
    }


def main() -> None:
    runs = [
        {"name": name, "model": model, "steps": steps} | end(name, CONFIGS[model], steps)
        for name in CLASSES
        for model in MODELS
        for steps in STEPS
    ]
    runs += [
        {"name": name, "options": options, "steps": 18} | end(name, SD15 | options, 18)
        for name, options in OPTIONS
    ]
    runs += [
        {"name": name, "model": "sd15", "steps": 9, "eta": eta} | end(name, SD15, 9, eta=eta)
        for name, eta in ETAS
    ]
    to_least = SD15 | {"timestep_spacing": "linspace", "final_sigmas_type": "sigma_min"}
    golden = {
        "oracle": f"diffusers {diffusers.__version__}, torch {torch.__version__}",
        "runs": runs,
        "swift": {"pndm": end("pndm", SD15, 20), "dpmpp": end("dpm++2m", to_least, 20)},
    }
    lines = json.dumps(golden).replace('{"name"', '\n{"name"')
    GOLDEN.write_text(f"{lines}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
