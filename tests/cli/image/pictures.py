"""What pictures are compared with."""

from pathlib import Path

import numpy as np
from PIL import Image

from macai.diffusion.images import to_bytes
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def expected(model: Path, **options) -> np.ndarray:
    """What the library gives, the first picture's pixels."""
    pipeline = Pipeline(Parts(open_checkpoint(model)))
    options = {"prompt": "a red apple", "steps": 3} | options
    *_, last = pipeline.sample(Request(**options))
    return to_bytes(pipeline.decode(last.latents))[0]


def save(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path
