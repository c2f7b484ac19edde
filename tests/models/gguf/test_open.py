"""What the converter writes opens in mlx-lm, and its tokenizer in transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer
from mlx_lm.utils import load_model, load_tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

Tiny = Callable[..., Any]
Convert = Callable[..., Path]

GOLDENS = Path(__file__).parents[2] / "goldens"
TEXTS = json.loads((GOLDENS / "gguf_smollm2_ids.json").read_text(encoding="utf-8"))["texts"]


def of_architecture(tiny_gguf: Tiny, name: str) -> Any:
    model = tiny_gguf(name, head_dim=32) if name == "qwen3" else tiny_gguf(name)
    for layer in range(2):
        for part, size in (("q", 64), ("k", 32), ("v", 32)):
            if name == "qwen2":
                model.tensors[f"blk.{layer}.attn_{part}.bias"] = np.ones(size, np.float32)
            elif name == "qwen3" and part != "v":
                model.tensors[f"blk.{layer}.attn_{part}_norm.weight"] = np.ones(32, np.float32)
    return model


def sentencepiece_llama(tiny_gguf: Tiny) -> Any:
    golden = GOLDENS / "gguf_sentencepiece_ids.json"
    content = json.loads(golden.read_text(encoding="utf-8"))
    model = tiny_gguf()
    model.metadata = {k: v for k, v in model.metadata.items() if not k.startswith("tokenizer.ggml")}
    model.metadata |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": content["tokens"],
        "tokenizer.ggml.token_type": content["types"],
        "tokenizer.ggml.scores": content["scores"],
    }
    size = len(content["tokens"])
    numbers = np.random.default_rng(0)
    model.tensors["token_embd.weight"] = numbers.standard_normal((size, 64), np.float32)
    return model


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["keep", "float16", "bfloat16"])
def test_mlx_lm_computes_with_every_dtype_what_it_does_in_float32(
    tiny_gguf: Tiny, convert: Convert, name: str, dtype: str
) -> None:
    model = of_architecture(tiny_gguf, name)
    for matrix in (n for n, values in model.tensors.items() if values.ndim == 2):
        model.types[matrix] = "Q8_0" if matrix.startswith("token") else "Q4_0"
    tokens = mx.array([[1, 5, 9, 2, 200, 7]])
    wanted = load_model(convert(model))[0](tokens)
    found = load_model(convert(model, dtype))[0](tokens).astype(mx.float32)
    error = mx.abs(found - wanted).max() / mx.abs(wanted).max()
    assert error.item() < (5e-2 if dtype == "bfloat16" else 1e-2)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_the_byte_level_tokenizer_as_written(
    tiny_gguf: Tiny, convert: Convert, name: str
) -> None:
    folder = convert(of_architecture(tiny_gguf, name))
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for tokenizer in (AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)._tokenizer):
        for text in TEXTS:
            assert tokenizer.encode(text) == written.encode(text).ids
        assert tokenizer.eos_token == "<|im_end|>"
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        assert chat == "a<|im_end|>"


def test_transformers_reads_the_sentencepiece_tokenizer_as_written(
    tiny_gguf: Tiny, convert: Convert
) -> None:
    folder = convert(sentencepiece_llama(tiny_gguf))
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    wrapped = load_tokenizer(folder)
    assert isinstance(wrapped.detokenizer, SPMStreamingDetokenizer)
    for tokenizer in (AutoTokenizer.from_pretrained(folder), wrapped._tokenizer):
        for text in TEXTS:
            ids = written.encode(text).ids
            assert ids[0] == tokenizer.bos_token_id == 1
            assert tokenizer.encode(text) == ids
            assert tokenizer.encode(text, add_special_tokens=False) == ids[1:]
        assert tokenizer.decode(tokenizer.encode("Hello  world é"), True) == "Hello  world é"
