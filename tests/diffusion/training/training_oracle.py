"""One training step as diffusers' scripts take it; torch is imported when one is taken."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.diffusion import tiny

BATCH, SIDE = 6, 8
TIMES = np.array([0, 20, 300, 650, 900, 999])


@functools.cache
def numbers() -> dict[str, np.ndarray]:
    """Latents, noise, and states of a text, in MLX's layout; drawn once."""
    rng = np.random.default_rng(0)
    shapes = {"latents": (BATCH, SIDE, SIDE, 4), "noise": (BATCH, SIDE, SIDE, 4)}
    shapes["hidden"] = (BATCH, 12, 16)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def scheduler(prediction: str) -> Any:
    """Return diffusers' scheduler of training."""
    from diffusers import DDPMScheduler

    options = {k: v for k, v in tiny.SCHEDULER.items() if k.startswith("beta")}
    return DDPMScheduler(**options, prediction_type=prediction)


def min_snr_weights(prediction: str, gamma: float) -> np.ndarray:
    """Return the weights of train_text_to_image.py at TIMES."""
    import torch
    from diffusers.training_utils import compute_snr

    times = torch.from_numpy(TIMES).long()
    snr = compute_snr(scheduler(prediction), times)
    capped = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    return (capped / (snr if prediction == "epsilon" else snr + 1)).numpy()


def step(unet: Any, prediction: str, *, gamma: float = 0.0, prior: float | None = None) -> Any:
    """Return the loss of train_text_to_image.py, or train_dreambooth.py with `prior`; a tensor.

    The last half of the batch are class pictures then, whose prior loss weighs `prior`.
    """
    import torch
    import torch.nn.functional as F

    own = scheduler(prediction)
    given = {n: torch.from_numpy(a) for n, a in numbers().items()}
    latents, noise = (given[n].permute(0, 3, 1, 2) for n in ("latents", "noise"))
    times = torch.from_numpy(TIMES).long()
    noisy = own.add_noise(latents, noise, times)
    target = noise if prediction == "epsilon" else own.get_velocity(latents, noise, times)
    predicted = unet(noisy, times, given["hidden"]).sample
    if prior is not None:
        mine, of_class = zip(predicted.chunk(2), target.chunk(2), strict=True)
        return F.mse_loss(*mine) + prior * F.mse_loss(*of_class)
    if not gamma:
        return F.mse_loss(predicted, target)
    weights = torch.from_numpy(min_snr_weights(prediction, gamma))
    errors = F.mse_loss(predicted, target, reduction="none")
    return (errors.mean(dim=list(range(1, errors.ndim))) * weights).mean()


def averages(decay: float, steps: int) -> list[float]:
    """Return what diffusers' EMAModel makes of a weight that is n squared after step n."""
    import torch
    from diffusers.training_utils import EMAModel

    weight = torch.nn.Parameter(torch.zeros(1))
    average, seen = EMAModel([weight], decay=decay), []
    for n in range(1, steps + 1):
        weight.data = torch.tensor([float(n**2)])
        average.step([weight])
        seen.append(average.shadow_params[0].item())
    return seen


def golden() -> dict[str, Any]:
    """Return what the fast tests compare with."""
    import diffusers
    import torch

    return {
        "oracle": f"diffusers {diffusers.__version__}, torch {torch.__version__}",
        "min_snr": {
            f"{prediction} {gamma:g}": min_snr_weights(prediction, gamma).tolist()
            for prediction in ("epsilon", "v_prediction")
            for gamma in (1.0, 5.0)
        },
        "averages": {str(decay): averages(decay, 12) for decay in (0.5, 0.999)},
    }


GOLDEN = Path(__file__).parents[2] / "goldens" / "diffusion_training.json"


def read_golden() -> dict[str, Any]:
    """Return the golden file."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))
