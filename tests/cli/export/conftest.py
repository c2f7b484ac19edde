import shutil

import pytest

from macai.coreml.verify import sample_text
from macai.models.load import load_model
from tests.adapters import adapt, save
from tests.cli.export.packages import SMALL
from tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    return save(adapt(load_model(folder)), tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tmp_path_factory.mktemp("exported") / "bundle"


@pytest.fixture
def bundle(macai, folder, adapter, exported, tmp_path):
    """A verified bundle of the tiny model with its adapter, to do with as one likes."""
    if not exported.exists():
        options = ("--model", folder, "--adapter", adapter, "--out", exported, *SMALL)
        result = macai("export", "llm", *options)
        assert result.code == 0, result.err
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture(scope="module")
def calibrate(tmp_path_factory):
    """Options: a text of some hundred tokens, where what comes with macai has thousands."""
    file = tmp_path_factory.mktemp("text") / "some.txt"
    file.write_text(sample_text()[:1200])
    return "--calibrate", file
