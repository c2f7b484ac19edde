"""Recipes of a run of seconds on pictures, and what happens in it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from macai.finetune_diffusion import finetune_diffusion
from macai.models.arrays import load_arrays
from macai.recipe.diffusion import (
    Batch,
    Diffusion,
    DiffusionRecipe,
    Lora,
    Loss,
    Optimizer,
    Schedule,
    Train,
)
from macai.train.checkpoint import FILE
from macai.train.loop import Report

LORA = DiffusionRecipe(
    model="m",
    lora=Lora(rank=2, alpha=2, targets="linear"),
    optimizer=Optimizer(learning_rate=1e-2),
    schedule=Schedule(name="constant", warmup_steps=0),
    batch=Batch(images=2),
    train=Train(steps=4, save_every=2),
)
UNET = replace(LORA, diffusion=Diffusion(train="unet"))
VAE = replace(
    LORA, diffusion=Diffusion(train="vae", init="random"), batch=Batch(images=4), loss=Loss()
)


def run(recipe, model, data, out, *, until=lambda events: False, **options):
    """Run a recipe, and stop it once `until` is true of what happened."""
    events = []
    for event in finetune_diffusion(
        recipe, model, data=data, out=out, should_stop=lambda: until(events), **options
    ):
        events.append(event)
    return events


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


def trained(out: Path) -> dict[str, np.ndarray]:
    arrays, _ = load_arrays(out / FILE)
    return {name: np.array(a) for name, a in arrays.items()}


def same(first, second, tolerance=0.0):
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert np.abs(array - second[name]).max() <= tolerance, name


def after(step):
    return lambda events: any(report.step == step for report in of(events, Report))
