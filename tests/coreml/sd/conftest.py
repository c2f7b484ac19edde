from pathlib import Path

import pytest

from tests.coreml.sd.bundles import export_tiny
from tests.diffusion.tiny import tiny_pipeline_dir


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion in diffusers' layout."""
    return tiny_pipeline_dir(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is exported of it."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    export_tiny(model, folder)
    return folder
