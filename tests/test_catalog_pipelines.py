"""Image models by name: paths, and which files of a hub repository are fetched."""

import fnmatch
from pathlib import Path

import pytest

from macai import catalog
from macai.catalog import locate_pipeline
from macai.errors import ModelError

REPOSITORY = [
    "model_index.json",
    "v1-5-pruned.safetensors",
    "v1-5-pruned.ckpt",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "safety_checker/model.safetensors",
    "safety_checker/model.fp16.safetensors",
]


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """Has the hub hold REPOSITORY, and notes what of it is asked for."""
    import huggingface_hub

    names: set[str] = set()

    def download(name, *, allow_patterns, ignore_patterns):
        def any_of(patterns, file):
            return any(fnmatch.fnmatch(file, p) for p in patterns)

        names.update(
            f for f in REPOSITORY if any_of(allow_patterns, f) and not any_of(ignore_patterns, f)
        )
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return names


def test_each_weight_is_fetched_once_and_in_full_precision(fetched):
    locate_pipeline("someone/pictures")
    assert {name for name in fetched if name.endswith((".safetensors", ".bin", ".ckpt"))} == {
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "text_encoder/model.safetensors",
    }
    assert {"model_index.json", "tokenizer/merges.txt", "unet/config.json"} <= fetched


def test_a_variant_is_fetched_instead_of_the_whole_weights(fetched):
    locate_pipeline("someone/pictures", variant="fp16")
    assert {name for name in fetched if name.endswith((".safetensors", ".bin", ".ckpt"))} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.fp16.safetensors",
    }


def test_a_path_goes_before_a_hub_id(tmp_path, monkeypatch, fetched):
    monkeypatch.chdir(tmp_path)
    Path("someone/pictures").mkdir(parents=True)
    assert locate_pipeline("someone/pictures") == Path("someone/pictures")
    assert not fetched


@pytest.fixture
def shipped(monkeypatch, tmp_path) -> Path:
    """Has macai come with one model of weights and one that is laid out only."""
    folder = tmp_path / "recipes"
    for name in ("tiny-things/unet/model.safetensors", "laid-out/unet/config.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    monkeypatch.setattr(catalog, "_catalogued", lambda kind, pattern: folder.glob(pattern))
    return folder


def test_a_model_that_comes_with_macai_is_found_by_its_name(shipped, fetched):
    assert locate_pipeline("tiny-things") == shipped / "tiny-things"
    assert catalog.pipeline_names() == ["tiny-things"]
    assert not fetched


def test_a_misspelt_name_is_put_right(shipped):
    with pytest.raises(ModelError) as caught:
        locate_pipeline("tiny-thing")
    assert caught.value.hint == "did you mean 'tiny-things'?"


@pytest.mark.parametrize("name", ["", "no-such", "a/b/c", "missing.safetensors"])
def test_what_is_neither_path_nor_id_is_refused(name):
    with pytest.raises(ModelError, match="not a path on this disk"):
        locate_pipeline(name)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(ModelError, match="not a checkpoint by its name"):
        locate_pipeline(str(tmp_path / "picture.png"))
