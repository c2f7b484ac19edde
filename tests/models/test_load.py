import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macai.errors import FormatError, ModelError
from macai.models.load import load_model, read_config

IDS = mx.array([[5, 80, 33, 7, 260, 9]])
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


@pytest.fixture
def folder(tiny_dir, tmp_path):
    """A copy of the tiny model's directory, to be broken."""
    return shutil.copytree(tiny_dir, tmp_path / "model")


def change(file, **values):
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def arrays(model):
    return dict(tree_flatten(model.parameters()))


def rewrite(folder, edit):
    weights = mx.load(str(folder / WEIGHTS))
    mx.eval(weights)
    edit(weights)
    mx.save_safetensors(str(folder / WEIGHTS), weights, metadata={"format": "pt"})


def truncate(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


def quantise(folder, *, bits, group_size=32, only=None, override=None, extra=None):
    """Quantise the model in `folder` as mlx-lm's own convert does, scales in float16."""
    loaded = load_model(folder)
    loaded.model.set_dtype(mx.float16)
    override = override or {}
    nn.quantize(
        loaded.model,
        group_size=group_size,
        bits=bits,
        class_predicate=lambda path, m: (
            hasattr(m, "to_quantized")
            and (only is None or only in path)
            and override.get(path, True)
        ),
    )
    (folder / WEIGHTS).unlink()
    mx.save_safetensors(str(folder / WEIGHTS), arrays(loaded.model), metadata={"format": "pt"})
    change(folder / CONFIG, quantization={"group_size": group_size, "bits": bits, **override})
    return loaded.model


def test_a_model_opens_with_its_own_weights_and_everything_it_needs(tiny_dir):
    loaded = load_model(tiny_dir)
    stored = mx.load(str(tiny_dir / WEIGHTS))
    assert arrays(loaded.model).keys() == stored.keys()
    assert all(mx.array_equal(value, stored[name]) for name, value in arrays(loaded.model).items())
    assert loaded.path == tiny_dir
    assert loaded.config["model_type"] == "llama"
    assert loaded.model(IDS).shape == (1, 6, loaded.config["vocab_size"])
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("Größe 🐋")) == "Größe 🐋"


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_becomes_float32_on_the_cpu(folder, dtype):
    rewrite(folder, lambda w: w.update({k: v.astype(dtype) for k, v in w.items()}))
    stored = mx.load(str(folder / WEIGHTS))
    loaded = load_model(folder)
    expected = mx.float32 if mx.default_device() == mx.cpu else dtype
    for name, value in arrays(loaded.model).items():
        assert value.dtype == expected
        assert mx.array_equal(value, stored[name].astype(expected))


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU computes with quantised weights")
@pytest.mark.parametrize(
    "how",
    [
        {"bits": 4},
        {"bits": 8},
        {"bits": 3},
        {"bits": 4, "override": {"model.layers.0.mlp.up_proj": {"group_size": 64, "bits": 8}}},
        {"bits": 4, "only": "self_attn"},
    ],
)
def test_a_quantised_model_opens_as_float32_with_exactly_its_dequantised_weights(folder, how):
    quantised = dict(quantise(folder, **how).named_modules())
    loaded = load_model(folder)
    assert {value.dtype for value in arrays(loaded.model).values()} == {mx.float32}
    found = 0
    for path, module in loaded.model.named_modules():
        assert not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)
        source = quantised[path]
        if isinstance(source, nn.QuantizedLinear | nn.QuantizedEmbedding):
            found += 1
            scales, biases = source.scales.astype(mx.float32), source.biases.astype(mx.float32)
            expected = mx.dequantize(
                source.weight, scales, biases, group_size=source.group_size, bits=source.bits
            )
            assert expected.dtype == mx.float32
            assert mx.array_equal(module.weight, expected), path
    assert found == (8 if how.get("only") else 16)
    assert mx.isfinite(loaded.model(IDS)).all()


def test_dequantised_weights_follow_the_formula_in_float64(folder):
    source = dict(quantise(folder, bits=4).named_modules())["model.layers.1.mlp.down_proj"]
    weight = np.array(load_model(folder).model.layers[1].mlp.down_proj.weight, np.float64)
    packed = np.array(source.weight)
    codes = (packed[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    groups = codes.reshape(len(packed), -1, 32).astype(np.float64)
    scales, biases = (np.array(x, np.float64)[..., None] for x in (source.scales, source.biases))
    expected = (groups * scales + biases).reshape(weight.shape)
    # One rounding of a float32 sum whose parts are up to 15 scales large.
    assert np.abs(weight - expected).max() < 16 * np.abs(scales).max() * 2.0**-24


def test_a_bias_survives_dequantisation(folder):
    change(folder / CONFIG, attention_bias=True)
    bias = {
        f"model.layers.{n}.self_attn.{p}_proj.bias": (32 if p in "kv" else 64)
        for n in (0, 1)
        for p in "qkvo"
    }
    rewrite(folder, lambda w: w.update({k: mx.random.normal((n,)) for k, n in bias.items()}))
    before = arrays(load_model(folder).model)
    quantise(folder, bits=4)
    after = arrays(load_model(folder).model)
    for name in bias:
        assert mx.array_equal(after[name], before[name].astype(mx.float16).astype(mx.float32))


def test_ends_come_from_config_generation_config_tokenizer_and_template(folder):
    ids = load_model(folder).tokenizer.convert_tokens_to_ids
    assert load_model(folder).eos_token_ids == {ids("<|im_end|>")}
    change(folder / CONFIG, eos_token_id=11)
    change(folder / "generation_config.json", eos_token_id=[12, 13])
    change(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    expected = {11, 12, 13, ids("<|endoftext|>"), ids("<|im_end|>")}  # the last one: the template
    assert load_model(folder).eos_token_ids == expected


def test_a_model_without_template_or_ends_in_its_config_opens(folder):
    change(folder / CONFIG, eos_token_id=None)
    change(folder / "tokenizer_config.json", chat_template=None)
    (folder / "generation_config.json").unlink()
    loaded = load_model(folder)
    assert loaded.eos_token_ids == {loaded.tokenizer.eos_token_id}


def test_a_template_that_refuses_a_conversation_does_not_stop_the_model_from_opening(folder):
    change(folder / "tokenizer_config.json", chat_template="{{ raise_exception('no') }}")
    assert load_model(folder).eos_token_ids


def test_a_special_token_without_a_role_after_the_answer_is_an_end(folder):
    template = "{% for m in messages %}{{ m['content'] }}<|im_start|>{% endfor %}"
    change(folder / "tokenizer_config.json", chat_template=template, bos_token="<|im_end|>")
    loaded = load_model(folder)
    mark = loaded.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert mark not in loaded.tokenizer.all_special_ids
    assert loaded.eos_token_ids == {loaded.tokenizer.eos_token_id, mark}


def test_a_plain_word_after_the_answer_is_no_end(folder):
    change(
        folder / "tokenizer_config.json",
        chat_template="{% for m in messages %}{{ m['content'] }} then {% endfor %}",
    )
    loaded = load_model(folder)
    assert loaded.eos_token_ids == {loaded.tokenizer.eos_token_id}


BROKEN = {
    "no folder": (lambda d: shutil.rmtree(d), "no such model directory", ""),
    "no config": (lambda d: (d / CONFIG).unlink(), "no config.json in it", "config.json"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "no model*.safetensors in it", "complete"),
    "no tokenizer": (
        lambda d: (d / TOKENIZER).unlink(),
        "neither tokenizer.json nor tokenizer.model in it",
        "",
    ),
    "config not JSON": (lambda d: truncate(d / CONFIG, 90), "config.json: not valid JSON", ""),
    "config too deep": (
        lambda d: (d / CONFIG).write_text("[" * 100_000),
        "config.json: not valid JSON",
        "",
    ),
    "config no text": (
        lambda d: (d / CONFIG).write_bytes(b"\xff\xfe{"),
        "config.json: not valid JSON",
        "",
    ),
    "config a list": (lambda d: (d / CONFIG).write_text("[]"), "not a JSON object", ""),
    "no model_type": (
        lambda d: change(d / CONFIG, model_type=None),
        "config.json: no model_type in it",
        "",
    ),
    "unknown model_type": (
        lambda d: change(d / CONFIG, model_type="llamma"),
        "Model type llamma not supported",
        "architecture",
    ),
    "model_type a path": (
        lambda d: change(d / CONFIG, model_type="../llama"),
        "not supported",
        "architecture",
    ),
    "code of its own": (
        lambda d: change(d / CONFIG, model_file="evil.py"),
        "brings code of its own (evil.py)",
        "runs no code",
    ),
    "config key missing": (lambda d: change(d / CONFIG, hidden_size=None), "hidden_size", ""),
    "config wrong type": (lambda d: change(d / CONFIG, hidden_size="wide"), "", "complete"),
    "config zero heads": (lambda d: change(d / CONFIG, num_attention_heads=0), "", "complete"),
    "generation config not JSON": (
        lambda d: (d / "generation_config.json").write_text("{"),
        "generation_config.json: not valid JSON",
        "",
    ),
    "weights truncated": (lambda d: truncate(d / WEIGHTS, -1000), "", "complete"),
    "weights cut in the header": (lambda d: truncate(d / WEIGHTS, 100), "", "complete"),
    "weights empty": (lambda d: (d / WEIGHTS).write_bytes(b""), "", "complete"),
    "tensor missing": (
        lambda d: rewrite(d, lambda w: w.pop("model.norm.weight")),
        "Missing 1 parameters: model.norm.weight",
        "complete",
    ),
    "tensor too many": (
        lambda d: rewrite(d, lambda w: w.update(extra=mx.zeros(3))),
        "1 parameters not in model: extra",
        "complete",
    ),
    "tensor of another shape": (
        lambda d: rewrite(d, lambda w: w.update({"model.norm.weight": mx.zeros(3)})),
        "model.norm.weight",
        "complete",
    ),
    "config of another size": (
        lambda d: change(d / CONFIG, intermediate_size=96),
        "mlp",
        "complete",
    ),
    "tokenizer truncated": (
        lambda d: truncate(d / TOKENIZER, 1000),
        "the tokenizer cannot be read",
        "",
    ),
    "tokenizer config not JSON": (
        lambda d: (d / "tokenizer_config.json").write_text("{"),
        "the tokenizer cannot be read",
        "",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_opened_is_one_short_message(folder, case):
    damage, message, hint = BROKEN[case]
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    error = caught.value
    assert error.message.startswith(str(folder))
    assert message in error.message
    assert hint in (error.hint or "")
    assert "\n" not in error.message
    assert len(error.message) < len(str(folder)) + 400


def test_a_missing_shard_names_what_was_in_it(folder):
    weights = mx.load(str(folder / WEIGHTS))
    mx.eval(weights)
    (folder / WEIGHTS).unlink()
    first = {k: v for k, v in weights.items() if ".layers.1." not in k}
    mx.save_safetensors(str(folder / "model-00001-of-00002.safetensors"), first)
    with pytest.raises(ModelError, match=r"Missing 9 parameters: model\.layers\.1\.") as caught:
        load_model(folder)
    assert caught.value.hint.startswith("is the copy complete")


def test_a_config_is_read_as_it_is(folder):
    assert read_config(folder) == json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text("null")
    with pytest.raises(FormatError, match="not a JSON object"):
        read_config(folder)
