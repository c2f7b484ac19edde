import pytest

from tests.diffusion.training.small import model_dir, picture_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_dir(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return picture_dir(tmp_path_factory.mktemp("pictures") / "p")
