"""The real SmolLM2 file, converted; tiny models are in tests/models/gguf."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model, load_tokenizer
from transformers import AutoTokenizer

from macai.models.converter import Converter

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def converter() -> Converter:
    spec = importlib.util.spec_from_file_location("gguf_converter", ROOT / "converters/gguf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONVERTER


@pytest.fixture(scope="module")
def in_float32(
    converter: Converter, smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("float32")
    converter.convert(smollm2_gguf, folder, "float32", lambda *_: None)
    return folder


@pytest.fixture(scope="module")
def kept(
    converter: Converter, smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("keep")
    converter.convert(smollm2_gguf, folder, "keep", lambda *_: None)
    return folder


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def prompts_of(golden: Any) -> list[list[int]]:
    ends = np.cumsum(golden["lengths"])
    return [ids.tolist() for ids in np.split(golden["ids"], ends[:-1])]


def mlx_logits(folder: Path, prompts: list[list[int]]) -> np.ndarray:
    model, _ = load_model(folder)
    rows = [model(mx.array([ids]))[0, -1].astype(mx.float32) for ids in prompts]
    return np.stack([np.array(row) for row in rows])


def test_float32_logits_are_those_of_the_golden(in_float32: Path) -> None:
    golden = np.load(GOLDENS / "gguf_smollm2_logits.npz")
    found = mlx_logits(in_float32, prompts_of(golden))
    for row, wanted in zip(found, golden["logits"], strict=True):
        assert error(row, wanted) <= TOLERANCE
        assert row.argmax() == wanted.argmax()


@pytest.mark.oracle
def test_float32_logits_are_those_of_transformers_own_gguf_loader(
    in_float32: Path, smollm2_gguf: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent,
        gguf_file=smollm2_gguf.name,
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()
    prompts = prompts_of(np.load(GOLDENS / "gguf_smollm2_logits.npz"))
    with torch.no_grad():
        wanted = [model(torch.tensor([ids])).logits[0, -1].numpy() for ids in prompts]
    for row, logits in zip(mlx_logits(in_float32, prompts), wanted, strict=True):
        assert error(row, logits) <= TOLERANCE


@pytest.mark.oracle
def test_transformers_computes_the_golden_from_the_converted_folder(in_float32: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(in_float32, attn_implementation="eager").eval()
    golden = np.load(GOLDENS / "gguf_smollm2_logits.npz")
    with torch.no_grad():
        for ids, wanted in zip(prompts_of(golden), golden["logits"], strict=True):
            assert error(model(torch.tensor([ids])).logits[0, -1].numpy(), wanted) <= 1e-5


def test_token_ids_are_those_of_llama_cpp(kept: Path) -> None:
    golden = json.loads((GOLDENS / "gguf_smollm2_ids.json").read_text(encoding="utf-8"))
    for tokenizer in (AutoTokenizer.from_pretrained(kept), load_tokenizer(kept)._tokenizer):
        for text, ids in zip(golden["texts"], golden["ids"], strict=True):
            assert tokenizer.encode(text) == ids


def test_kept_weights_are_exactly_those_in_float32(kept: Path, in_float32: Path) -> None:
    packed = mx.load(str(kept / "model.safetensors"))
    plain = mx.load(str(in_float32 / "model.safetensors"))
    config = json.loads((kept / "config.json").read_text())["quantization"]
    assert config["bits"] == 4
    assert config["model.embed_tokens"]["bits"] == 8
    quantised = 0
    for name, wanted in plain.items():
        path = name.removesuffix(".weight")
        value = packed[name]
        if f"{path}.scales" in packed:
            quantised += 1
            scales, biases = packed[f"{path}.scales"], packed[f"{path}.biases"]
            bits = config.get(path, config)["bits"]
            value = mx.dequantize(
                value, scales.astype(mx.float32), biases.astype(mx.float32), 32, bits
            )
        assert mx.array_equal(value.astype(mx.float32), wanted), name
    assert quantised == 211
    assert (kept / "model.safetensors").stat().st_size < 100_000_000


def test_float32_weights_are_those_the_gguf_package_reads(
    in_float32: Path, smollm2_gguf: Path
) -> None:
    weights = mx.load(str(in_float32 / "model.safetensors"))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_gguf).tensors}

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type)

    embedding = np.array(weights["model.embed_tokens.weight"])
    np.testing.assert_array_equal(embedding, read("token_embd.weight"))
    down = np.array(weights["model.layers.29.mlp.down_proj.weight"])
    np.testing.assert_array_equal(down, read("blk.29.ffn_down.weight"))
    for name, heads in (("q", 9), ("k", 3)):
        rows = read(f"blk.7.attn_{name}.weight")
        rows = rows.reshape(heads, 32, 2, 576).swapaxes(1, 2).reshape(rows.shape)
        found = np.array(weights[f"model.layers.7.self_attn.{name}_proj.weight"])
        np.testing.assert_array_equal(found, rows)


def test_the_config_says_what_the_file_says(kept: Path) -> None:
    config = json.loads((kept / "config.json").read_text())
    wanted = {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: config[key] for key in wanted} == wanted
