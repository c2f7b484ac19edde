from pathlib import Path

import numpy as np
import pytest

from tests.cli.image.pictures import save
from tests.diffusion.tiny import SIZE, tiny_pipeline_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_pipeline_dir(tmp_path_factory.mktemp("sd") / "tiny-sd")


@pytest.fixture
def make(macai, model, tmp_path):
    """Runs `macai image` with few steps and returns the result and the path of its picture."""

    def make(*options, name="x.png", prompt=("a red apple",), given=model, steps=3):
        out = tmp_path / name
        fixed = ["--model", given, "--out", out] + (["--steps", steps] if steps else [])
        return macai("image", *prompt, *fixed, *options), out

    return make


@pytest.fixture
def photo(tmp_path) -> Path:
    y, x = np.mgrid[0:SIZE, 0:SIZE] * 255 // SIZE
    return save(tmp_path / "photo.png", np.stack([x, y, 255 - x], -1).astype(np.uint8))


@pytest.fixture
def mask(tmp_path) -> Path:
    values = np.zeros((SIZE, SIZE), np.uint8)
    values[SIZE // 2 :] = 255
    return save(tmp_path / "mask.png", values)
