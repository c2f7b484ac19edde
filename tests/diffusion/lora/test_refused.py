"""A file that is no LoRA says what is wrong with it."""

import json
import struct

import mlx.core as mx
import pytest

from macai.diffusion.lora.formats import read_lora
from macai.errors import AdapterError, FormatError, ModelError
from tests.diffusion.lora.lora_cases import pair_file, write


def header(entries):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"<!DOCTYPE html><html>", "not a safetensors file"),
        (struct.pack("<Q", 1 << 60) + b"{}", "not a safetensors file"),
        (header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}), "ends at byte"),
        (
            header({"a": {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 16]}}),
            "bytes long",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of git-lfs"),
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(content, message, layers, tmp_path):
    file = tmp_path / "lora.safetensors"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_lora(file, layers["sd1"])


def test_a_file_cut_off_anywhere_is_refused(layers, tmp_path):
    file, _ = pair_file(layers["sd1"], tmp_path, "kohya")
    whole = file.read_bytes()
    for length in [0, 4, 8, 20, 200, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_lora(file, layers["sd1"])


class _Runs:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_that_wants_code_run_is_refused_and_runs_nothing(layers, tmp_path, capsys):
    import pickle
    import zipfile

    file = tmp_path / "lora.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": _Runs()}, protocol=2))
    with pytest.raises(ModelError):
        read_lora(file, layers["sd1"])
    assert capsys.readouterr().out == ""


def test_a_file_or_folder_without_weights_is_refused(layers, tmp_path):
    with pytest.raises(FormatError, match="cannot be opened"):
        read_lora(tmp_path / "nothing.safetensors", layers["sd1"])
    with pytest.raises(
        AdapterError, match=r"none of pytorch_lora_weights.safetensors and adapter_"
    ):
        read_lora(tmp_path, layers["sd1"])
    for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"):
        pair_file(layers["sd1"], tmp_path, "peft", name)
    with pytest.raises(AdapterError, match="both of"):
        read_lora(tmp_path, layers["sd1"])


def test_a_file_without_tensors_is_refused(layers, tmp_path):
    file = tmp_path / "lora.safetensors"
    file.write_bytes(header({}))
    with pytest.raises(AdapterError, match="holds no tensors"):
        read_lora(file, layers["sd1"])


def test_a_whole_model_is_no_lora(layers, tmp_path):
    file = write(tmp_path / "model.safetensors", {"model.diffusion_model.out.2.bias": mx.zeros(4)})
    with pytest.raises(AdapterError, match="not a LoRA's tensor"):
        read_lora(file, layers["sd1"])
