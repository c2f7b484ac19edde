"""A small pipeline, saved once."""

import shutil
from pathlib import Path

import pytest

from macai.diffusion.loading import Models
from tests.diffusion.loading.cases import saved


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Models]:
    path = tmp_path_factory.mktemp("diffusers") / "model"
    return path, saved(path)


@pytest.fixture
def folder(original: tuple[Path, Models], tmp_path: Path) -> Path:
    """The saved pipeline, for a test to change."""
    return Path(shutil.copytree(original[0], tmp_path / "model"))


@pytest.fixture
def models(original: tuple[Path, Models]) -> Models:
    """What was saved."""
    return original[1]
