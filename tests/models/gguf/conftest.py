"""A tiny GGUF model to write, change and convert."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from macai.models.converter import Converter

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def converter() -> Converter:
    spec = importlib.util.spec_from_file_location("gguf_converter", ROOT / "converters/gguf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONVERTER


@pytest.fixture
def convert(converter: Converter, tmp_path: Path) -> Callable[..., Path]:
    """Convert a file or a tiny model and return the folder."""

    def run(source: Any, dtype: Any = "float32") -> Path:
        if isinstance(source, TinyModel):
            source = source.write(tmp_path / "model.gguf")
        out = tmp_path / f"out-{dtype}"
        out.mkdir()
        converter.convert(source, out, dtype, lambda *_: None)
        return out

    return run


def byte_letters() -> list[str]:
    """Return the 256 letters byte-level BPE writes bytes as, in the order of the bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


@dataclass
class TinyModel:
    """What a GGUF file holds, to be changed before it is written.

    Attributes:
        metadata: By key; floats are stored as float32, ints as uint32, lists as arrays.
        tensors: By name, float32; stored as `types` says, F32 if it says nothing.
        types: Names of tensor types by tensor.
    """

    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]
    types: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in self.metadata.items():
            self._add(writer, key, value)
        for name, values in self.tensors.items():
            kind = gguf.GGMLQuantizationType[self.types.get(name, "F32")]
            if values.dtype == np.uint8:
                data = values
            elif kind == gguf.GGMLQuantizationType.F32:
                data = values.astype(np.float32)
            else:
                data = gguf.quants.quantize(values.astype(np.float32), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    @staticmethod
    def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def tiny_model(
    architecture: str = "llama",
    *,
    hidden: int = 64,
    ffn: int = 96,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    letters: list[str] | None = None,
) -> TinyModel:
    tokens = [*(letters or byte_letters()), "<|bos|>", "<|im_end|>"]
    a = architecture
    metadata = {
        f"{a}.block_count": layers,
        f"{a}.context_length": 128,
        f"{a}.embedding_length": hidden,
        f"{a}.feed_forward_length": ffn,
        f"{a}.attention.head_count": heads,
        f"{a}.attention.head_count_kv": kv_heads,
        f"{a}.attention.key_length": head_dim,
        f"{a}.attention.value_length": head_dim,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2" if a == "llama" else "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.merges": ["a b", "ab c"],
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
    }
    if letters is None:
        metadata["tokenizer.ggml.tokens"] = [*tokens, "ab", "abc"]
        metadata["tokenizer.ggml.token_type"] = [1] * (len(tokens) - 2) + [3, 3, 1, 1]
    size = len(metadata["tokenizer.ggml.tokens"])
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (size, hidden)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (hidden,),
            f"blk.{i}.attn_q.weight": (heads * head_dim, hidden),
            f"blk.{i}.attn_k.weight": (kv_heads * head_dim, hidden),
            f"blk.{i}.attn_v.weight": (kv_heads * head_dim, hidden),
            f"blk.{i}.attn_output.weight": (hidden, heads * head_dim),
            f"blk.{i}.ffn_norm.weight": (hidden,),
            f"blk.{i}.ffn_gate.weight": (ffn, hidden),
            f"blk.{i}.ffn_up.weight": (ffn, hidden),
            f"blk.{i}.ffn_down.weight": (hidden, ffn),
        }
    shapes["output_norm.weight"] = (hidden,)
    numbers = np.random.default_rng(0)
    tensors = {
        name: numbers.standard_normal(shape, np.float32) * np.float32(0.1)
        for name, shape in shapes.items()
    }
    return TinyModel(architecture, metadata, tensors)


@pytest.fixture
def tiny_gguf() -> Callable[..., TinyModel]:
    """Make a tiny model: by default a llama of 2 layers, hidden 64, 4 heads, byte-level BPE."""
    return tiny_model
