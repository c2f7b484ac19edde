import pytest

from macai.models.load import LoadedModel, load_model
from tests.tiny import tiny_model_dir


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random llama of two layers with a real byte-level BPE tokenizer."""
    return load_model(tiny_model_dir(tmp_path_factory.mktemp("tiny")))
