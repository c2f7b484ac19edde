"""What is written is what diffusers reads; the proof with diffusers itself is an oracle test."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from macai.diffusion.loading import Models, open_checkpoint, save_folder
from macai.errors import ModelError, OutputError, UsageError
from macai.models.arrays import load_arrays
from tests.diffusion.loading.cases import assert_same_weights, torch_weights


def test_files_and_index_are_those_of_diffusers(folder: Path, models: Models) -> None:
    files = {str(p.relative_to(folder)) for p in folder.rglob("*.*")}
    assert files == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((folder / "model_index.json").read_text())
    assert index == {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    arrays, metadata = load_arrays(file)
    assert metadata == {"format": "pt"}
    assert arrays["conv_in.weight"].shape == (32, 4, 3, 3)
    expected = torch_weights(models.load("unet"))
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        assert mx.array_equal(arrays[name], mx.array(value)), name


def test_a_checkpoint_is_written_in_the_type_it_was_opened_with(
    tmp_path: Path, folder: Path
) -> None:
    half = open_checkpoint(folder, dtype="float16")
    save_folder(half, tmp_path / "half")
    arrays, _ = load_arrays(tmp_path / "half" / "vae" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in arrays.values()} == {mx.float16}
    again = open_checkpoint(tmp_path / "half", dtype="float16")
    for component in again.components:
        assert_same_weights(again.load(component), half.load(component))
    before, after = folder / "tokenizer", tmp_path / "half" / "tokenizer"
    assert {f.name for f in after.iterdir()} == {f.name for f in before.iterdir()}
    for file in before.iterdir():
        assert (after / file.name).read_bytes() == file.read_bytes()


def test_nothing_is_left_of_a_folder_that_cannot_be_written_whole(
    tmp_path: Path, folder: Path
) -> None:
    checkpoint = open_checkpoint(folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ModelError):
        save_folder(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


def test_what_is_there_is_not_replaced_unasked(folder: Path, models: Models) -> None:
    with pytest.raises(OutputError, match="exists already"):
        save_folder(models, folder)
    save_folder(models, folder, force=True)
    open_checkpoint(folder).load("unet")


def test_quantised_weights_are_not_written(tmp_path: Path, folder: Path) -> None:
    checkpoint = open_checkpoint(folder, quantize=8)
    with pytest.raises(UsageError, match="unet is quantised"):
        save_folder(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_two_layers_of_the_saved_model_are_alike(models: Models) -> None:
    first = torch_weights(models.load("unet"))
    values = [tuple(v.reshape(-1)[:2]) for n, v in first.items() if ".to_" in n and v.ndim == 2]
    assert len(set(values)) == len(values) > 8
