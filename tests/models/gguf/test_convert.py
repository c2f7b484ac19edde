import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import quants
from safetensors.numpy import load_file

from macai.errors import FormatError, MacaiError, ModelError
from macai.models.converter import Converter
from macai.models.gguf.blocks import TENSOR_TYPES

Tiny = Callable[..., Any]
Convert = Callable[..., Path]

Q, K = "blk.0.attn_q.weight", "blk.1.attn_k.weight"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    loaded = mx.load(str(folder / "model.safetensors"))
    return {name: np.array(value.astype(mx.float32)) for name, value in loaded.items()}


def dtypes_of(folder: Path) -> dict[str, mx.Dtype]:
    return {name: v.dtype for name, v in mx.load(str(folder / "model.safetensors")).items()}


def separated(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of q's and k's rows."""
    return values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def quantise(model: Any, kind: str) -> dict[str, np.ndarray]:
    """Store all matrices as `kind` and return what they then hold, in float32."""
    number = gguf.GGMLQuantizationType[kind]
    held = dict(model.tensors)
    for name, values in model.tensors.items():
        if values.ndim == 2:
            model.types[name] = kind
            held[name] = quants.dequantize(quants.quantize(values, number), number)
    return held


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_have_the_dtype_asked_for_and_the_values_of_the_file(
    tiny_gguf: Tiny, convert: Convert, dtype: str
) -> None:
    model = tiny_gguf()
    folder = convert(model, dtype)
    kind = getattr(mx, dtype)
    weights = mx.load(str(folder / "model.safetensors"))
    assert {value.dtype for value in weights.values()} == {kind}
    wanted = mx.array(separated(model.tensors[Q], 4)).astype(kind)
    assert mx.array_equal(weights["model.layers.0.self_attn.q_proj.weight"], wanted)
    wanted = mx.array(separated(model.tensors[K], 2)).astype(kind)
    assert mx.array_equal(weights["model.layers.1.self_attn.k_proj.weight"], wanted)
    wanted = mx.array(model.tensors["blk.1.ffn_down.weight"]).astype(kind)
    assert mx.array_equal(weights["model.layers.1.mlp.down_proj.weight"], wanted)
    assert config_of(folder)["torch_dtype"] == dtype


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_keep_leaves_matrices_quantised_with_their_exact_values(
    tiny_gguf: Tiny, convert: Convert, kind: str
) -> None:
    model = tiny_gguf()
    held = quantise(model, kind)
    folder = convert(model, "keep")
    weights = mx.load(str(folder / "model.safetensors"))
    bits = 8 if kind == "Q8_0" else 4
    rule = {"group_size": 32, "bits": bits, "mode": "affine"}
    config = config_of(folder)
    assert config["quantization"] == config["quantization_config"] == rule
    names = {
        "model.embed_tokens": held["token_embd.weight"],
        "model.layers.0.self_attn.q_proj": separated(held[Q], 4),
        "model.layers.1.self_attn.k_proj": separated(held[K], 2),
        "model.layers.1.mlp.up_proj": held["blk.1.ffn_up.weight"],
    }
    for path, values in names.items():
        assert weights[f"{path}.weight"].dtype == mx.uint32
        assert weights[f"{path}.scales"].dtype == mx.float16
        packed = [weights[f"{path}.{part}"] for part in ("weight", "scales", "biases")]
        scales = [part.astype(mx.float32) for part in packed[1:]]
        found = mx.dequantize(packed[0], *scales, group_size=32, bits=bits)
        np.testing.assert_array_equal(np.array(found), values)


def test_keep_names_the_layers_of_other_bits(tiny_gguf: Tiny, convert: Convert) -> None:
    model = tiny_gguf()
    quantise(model, "Q4_0")
    model.types |= {"token_embd.weight": "Q8_0", K: "F16"}
    folder = convert(model, "keep")
    eight = {"group_size": 32, "bits": 8, "mode": "affine"}
    quantization = config_of(folder)["quantization"]
    assert quantization == {**eight, "bits": 4, "model.embed_tokens": eight}
    assert dtypes_of(folder)["model.layers.1.self_attn.k_proj.weight"] == mx.float16


def test_keep_dequantises_other_types_to_float16(tiny_gguf: Tiny, convert: Convert) -> None:
    model = tiny_gguf()
    held = quantise(model, "Q5_0")
    folder = convert(model, "keep")
    assert "quantization" not in config_of(folder)
    found = weights_of(folder)["model.layers.0.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(found, held["blk.0.ffn_gate.weight"].astype(np.float16))


@pytest.mark.parametrize(("kind", "kept"), [("F16", mx.float16), ("BF16", mx.bfloat16)])
def test_keep_gives_norms_the_type_of_the_model_where_that_is_exact(
    tiny_gguf: Tiny, convert: Convert, kind: str, kept: mx.Dtype
) -> None:
    model = tiny_gguf()
    quantise(model, kind)
    model.tensors["output_norm.weight"] = np.full(64, 0.5, np.float32)
    model.tensors["blk.0.attn_norm.weight"] = np.full(64, 0.1, np.float32)
    dtypes = dtypes_of(convert(model, "keep"))
    assert dtypes["model.norm.weight"] == kept
    assert dtypes["model.layers.0.input_layernorm.weight"] == mx.float32
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == kept


def test_keep_leaves_a_float32_model_as_it_is(tiny_gguf: Tiny, convert: Convert) -> None:
    folder = convert(tiny_gguf(), "keep")
    assert set(dtypes_of(folder).values()) == {mx.float32}
    assert config_of(folder)["torch_dtype"] == "float32"


def test_keep_stores_scales_in_float32_where_float16_would_overflow(
    tiny_gguf: Tiny, convert: Convert
) -> None:
    model = tiny_gguf()
    model.types[Q] = "Q8_0"
    model.tensors[Q] = model.tensors[Q] * 1e6
    folder = convert(model, "keep")
    path = "model.layers.0.self_attn.q_proj"
    weights = mx.load(str(folder / "model.safetensors"))
    assert weights[f"{path}.scales"].dtype == weights[f"{path}.biases"].dtype == mx.float32
    number = gguf.GGMLQuantizationType.Q8_0
    held = quants.dequantize(quants.quantize(model.tensors[Q], number), number)
    parts = [weights[f"{path}.{part}"] for part in ("weight", "scales", "biases")]
    found = np.array(mx.dequantize(*parts, group_size=32, bits=8))
    np.testing.assert_array_equal(found, separated(held, 4))


@pytest.mark.parametrize("kind", [name for name in TENSOR_TYPES if name.endswith("_K")])
def test_k_quants_convert(tiny_gguf: Tiny, convert: Convert, kind: str) -> None:
    model = tiny_gguf(hidden=256, ffn=256, layers=1)
    numbers = np.random.default_rng(1)
    rows = numbers.integers(0, 60, (256, TENSOR_TYPES[kind].bytes), dtype=np.uint8)
    model.tensors["blk.0.ffn_up.weight"] = rows
    model.types["blk.0.ffn_up.weight"] = kind
    found = weights_of(convert(model))["model.layers.0.mlp.up_proj.weight"]
    wanted = quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(found, wanted)


def test_a_value_beyond_float16_asks_for_another_dtype(tiny_gguf: Tiny, convert: Convert) -> None:
    model = tiny_gguf()
    model.tensors[Q][3, 3] = 1e6
    with pytest.raises(ModelError, match=r"'blk.0.attn_q.weight'.*1e\+06, is beyond float16"):
        convert(model, "float16")
    assert weights_of(convert(model, "bfloat16"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(
    tiny_gguf: Tiny, convert: Convert, value: float
) -> None:
    model = tiny_gguf()
    model.tensors["output_norm.weight"][5] = value
    with pytest.raises(ModelError, match=r"'output_norm\.weight' holds values that are not finite"):
        convert(model)


def test_an_output_matrix_unties_the_embeddings(tiny_gguf: Tiny, convert: Convert) -> None:
    model = tiny_gguf()
    assert config_of(convert(model, "float16"))["tie_word_embeddings"] is True
    model.tensors["output.weight"] = model.tensors["token_embd.weight"] + 1
    folder = convert(model)
    assert config_of(folder)["tie_word_embeddings"] is False
    found = weights_of(folder)["lm_head.weight"]
    np.testing.assert_array_equal(found, model.tensors["output.weight"])


def test_biases_of_llama_are_put_in_order_with_their_rows(
    tiny_gguf: Tiny, convert: Convert
) -> None:
    model = tiny_gguf(layers=1)
    numbers = np.random.default_rng(0)
    for name, size in (("q", 64), ("k", 32), ("v", 32), ("output", 64)):
        model.tensors[f"blk.0.attn_{name}.bias"] = numbers.standard_normal(size, np.float32)
    folder = convert(model)
    assert config_of(folder)["attention_bias"] is True
    found = weights_of(folder)["model.layers.0.self_attn.q_proj.bias"]
    wanted = separated(model.tensors["blk.0.attn_q.bias"][:, None], 4)[:, 0]
    np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(found, model.tensors["blk.0.attn_q.bias"])


def test_every_token_that_ends_a_reply_is_in_both_configs(
    tiny_gguf: Tiny, convert: Convert
) -> None:
    model = tiny_gguf()
    end = model.metadata["tokenizer.ggml.eos_token_id"]
    folder = convert(model, "float16")
    assert config_of(folder)["eos_token_id"] == end
    model.metadata |= {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": end}
    folder = convert(model)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert config_of(folder)["eos_token_id"] == generation["eos_token_id"] == [end, 5]


def test_the_chat_template_and_the_roles_are_in_the_tokenizer_config(
    tiny_gguf: Tiny, convert: Convert
) -> None:
    model = tiny_gguf()
    model.metadata["tokenizer.ggml.padding_token_id"] = 0
    config = json.loads((convert(model) / "tokenizer_config.json").read_text())
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|bos|>",
        "eos_token": "<|im_end|>",
        "unk_token": None,
        "pad_token": model.metadata["tokenizer.ggml.tokens"][0],
        "chat_template": model.metadata["tokenizer.chat_template"],
        "model_max_length": 128,
    }


def test_progress_counts_every_tensor(
    converter: Converter, tiny_gguf: Tiny, tmp_path: Path
) -> None:
    model, seen = tiny_gguf(), []
    source = model.write(tmp_path / "model.gguf")
    (tmp_path / "out").mkdir()
    converter.convert(source, tmp_path / "out", "float32", lambda *step: seen.append(step))
    total = len(model.tensors)
    assert seen == [("writing weights", done, total) for done in range(1, total + 1)]


def remove(*names: str) -> Callable[[Any], None]:
    return lambda model: [model.tensors.pop(name) for name in names]


def put(**tensors: np.ndarray) -> Callable[[Any], None]:
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return lambda model: model.tensors.update(named)


def tell(**metadata: Any) -> Callable[[Any], None]:
    named = {key.replace("__", "."): value for key, value in metadata.items()}
    return lambda model: model.metadata.update(named)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (remove(Q, K), FormatError, f"missing tensors: {Q}, {K}"),
        (put(blk__0__extra__weight=zeros(4)), FormatError, "no place in the model: blk.0.extra"),
        (put(blk__2__attn_norm__weight=zeros(64)), FormatError, "blk.2.attn_norm.weight"),
        (put(blk__0__ffn_gate_exps__weight=zeros(4, 4)), ModelError, "a mixture of experts"),
        (tell(llama__expert_count=8), ModelError, "a mixture of experts (8 of them)"),
        (put(blk__0__attn_q__weight=zeros(32, 64)), FormatError, f"{Q} is [32, 64], not [64, 64]"),
        (put(output_norm__weight=zeros(1, 64)), FormatError, "is [1, 64], not [64]"),
        (tell(llama__block_count=3), FormatError, "missing tensors: blk.2.attn_norm.weight"),
        (tell(llama__block_count=2**31), FormatError, "2147483648 layers, but only 20 tensors"),
        (tell(llama__block_count=0), FormatError, "'llama.block_count' is 0"),
        (tell(llama__block_count="2"), FormatError, "'llama.block_count' is '2'"),
        (tell(llama__attention__head_count=3), FormatError, "a divisor of 3 heads"),
        (tell(llama__attention__head_count=0), FormatError, "head_count' is 0"),
        (tell(llama__attention__head_count=[4, 4]), FormatError, "not a whole number"),
        (tell(llama__attention__value_length=8), FormatError, "not the key length, 16"),
        (tell(llama__rope__dimension_count=8), FormatError, "not the even head size, 16"),
        (tell(llama__rope__freq_base=float("nan")), FormatError, "freq_base' is nan"),
        (tell(llama__attention__layer_norm_rms_epsilon=-1.0), FormatError, "is -1.0"),
        (tell(llama__attention__causal=False), ModelError, "not causal"),
        (tell(llama__attention__sliding_window=64), ModelError, "sliding window of 64 tokens"),
        (tell(llama__logit_scale=2.0), ModelError, "metadata not understood: logit_scale"),
        (tell(tokenizer__chat_template=3), FormatError, "'tokenizer.chat_template' is 3"),
        (tell(general__type="adapter"), ModelError, "holds 'adapter', not a model"),
        (lambda model: model.metadata.pop("llama.context_length"), FormatError, "is missing"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(
    tiny_gguf: Tiny, convert: Convert, change: Any, error: type[MacaiError], what: str
) -> None:
    model = tiny_gguf()
    change(model)
    with pytest.raises(error) as caught:
        convert(model)
    assert what in caught.value.message
    assert "\n" not in caught.value.message


def test_an_unknown_architecture_is_named_with_the_known_ones(
    tiny_gguf: Tiny, convert: Convert
) -> None:
    with pytest.raises(ModelError, match="architecture 'mamba' is not supported") as caught:
        convert(tiny_gguf("mamba"))
    assert "llama, qwen2, qwen3" in str(caught.value.hint)


def mutate(whole: bytes, source: random.Random) -> bytes:
    """Cut, flip, insert, remove or repeat bytes, mostly in the header."""
    data = bytearray(whole)
    header = 3000
    if source.random() < 0.2:
        return bytes(data[: source.randrange(len(data))])
    for _ in range(source.choice([1, 1, 2, 5])):
        at = source.randrange(header if source.random() < 0.8 else len(data))
        kind = source.randrange(5)
        if kind <= 1:
            data[at] = source.randrange(256)
        elif kind == 2:
            data[at : at + 8] = source.choice([b"\xff" * 8, b"\0" * 8, b"\0" * 7 + b"\x7f"])
        elif kind == 3:
            data[at:at] = data[at : at + source.randrange(1, 40)]
        else:
            del data[at : at + source.randrange(1, 40)]
    return bytes(data)


def test_damaged_files_convert_or_are_refused_and_nothing_else(
    converter: Converter, tiny_gguf: Tiny, tmp_path: Path
) -> None:
    model = tiny_gguf(letters=list("abcdefgh"), layers=1, hidden=32, ffn=32, heads=2)
    model.metadata |= {"tokenizer.ggml.tokens": [*"abcdefgh", "ab", "abc", "<|im_end|>"]}
    model.metadata |= {"tokenizer.ggml.token_type": [1] * 10 + [3]}
    model.metadata |= {"tokenizer.ggml.bos_token_id": 9, "tokenizer.ggml.eos_token_id": 10}
    model.tensors["token_embd.weight"] = model.tensors["token_embd.weight"][:1].repeat(11, axis=0)
    model.types = {"blk.0.ffn_up.weight": "Q4_0", "token_embd.weight": "Q8_0"}
    whole = model.write(tmp_path / "whole.gguf").read_bytes()
    source, path, refused = random.Random(0), tmp_path / "damaged.gguf", 0
    started = time.monotonic()
    tracemalloc.start()
    for i in range(400):
        path.write_bytes(mutate(whole, source))
        out = tmp_path / f"out-{i}"
        out.mkdir()
        try:
            converter.convert(path, out, "keep", lambda *_: None)
        except MacaiError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert time.monotonic() - started < 60
    assert 200 < refused < 400


def test_matches_by_first_bytes_or_name(converter: Converter, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"GGUF....")
    (tmp_path / "broken.GGUF").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "other.bin").write_bytes(b"GGML....")
    assert converter.matches(tmp_path / "weights")
    assert converter.matches(tmp_path / "broken.GGUF")
    assert not converter.matches(tmp_path / "other.bin")
    assert not converter.matches(tmp_path)
    assert not converter.matches(tmp_path / "missing.gguf")


def test_a_single_file_holds_safetensors_others_can_read(tiny_gguf: Tiny, convert: Convert) -> None:
    model = tiny_gguf()
    read = load_file(convert(model, "float16") / "model.safetensors")
    assert {value.dtype for value in read.values()} == {np.dtype(np.float16)}
    assert len(read) == len(model.tensors)


def test_a_qwen2_model_of_another_tokenizer_is_refused(tiny_gguf: Tiny, convert: Convert) -> None:
    model = tiny_gguf("qwen2")
    model.metadata["tokenizer.ggml.pre"] = "gpt-2"
    with pytest.raises(ModelError, match="pre-tokenizer 'gpt-2' in a model of architecture"):
        convert(model)
