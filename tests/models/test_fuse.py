import json

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from macai.errors import AdapterError
from macai.models import fuse as fuse_module
from macai.models.adapter import load_adapter
from macai.models.fuse import companion_files, fuse, write_model
from macai.models.load import load_model
from macai.models.lora import lora_layers
from tests.adapters import adapt, save
from tests.tiny import tiny_model_dir

IDS = mx.array([[5, 80, 33, 7, 260, 9], [1, 2, 3, 4, 5, 6]])
# Largest difference of logits, which are about 1 in size: rounding of weights to the type.
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "fused"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def quantised_dir(tmp_path_factory):
    """The tiny model in 4 bit, as `mlx_lm.convert` leaves it."""
    folder = tiny_model_dir(tmp_path_factory.mktemp("quantised"))
    model = load_model(folder).model
    nn.quantize(model, group_size=32, bits=4)
    (folder / "model.safetensors").unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = json.loads((folder / "config.json").read_text())
    widths = {"group_size": 32, "bits": 4}
    config |= {"quantization": widths, "quantization_config": widths}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def difference(a, b):
    return mx.abs(a - b).max().item()


@pytest.mark.parametrize(
    "targets", [("all-linear",), ("q_proj", "lm_head"), ("layers.1.mlp.up_proj",)]
)
def test_a_fused_model_has_the_adapters_logits_and_no_adapter(tiny, targets):
    base = tiny.model(IDS)
    adapted = adapt(tiny, targets).model(IDS)
    fuse(tiny)
    assert not lora_layers(tiny.model)
    assert difference(tiny.model(IDS), adapted) < TOLERANCE["float32"]
    assert difference(adapted, base) > 1e-2


def test_a_layer_becomes_its_weight_plus_the_delta(tiny):
    path = "model.layers.0.mlp.down_proj"
    weight = dict(tiny.model.named_modules())[path].weight
    adapt(tiny, (path,))
    delta = lora_layers(tiny.model)[path].delta()
    others = {k: v for k, v in tree_flatten(tiny.model.parameters()) if path not in k}
    fuse(tiny)
    after = dict(tree_flatten(tiny.model.parameters()))
    assert mx.array_equal(after.pop(f"{path}.weight"), weight + delta)
    assert all(mx.array_equal(after[name], value) for name, value in others.items())
    assert after.keys() == others.keys()


def test_a_quantised_layer_is_dequantised_not_quantised_again(tiny):
    reference = load_model(tiny.path)
    nn.quantize(tiny.model, group_size=32, bits=4)
    nn.quantize(reference.model, group_size=32, bits=4)
    adapted = adapt(tiny).model(IDS)
    fuse(tiny)
    kinds = {type(m) for _, m in tiny.model.named_modules()}
    assert not kinds & {nn.QuantizedLinear, nn.QuantizedEmbedding}
    assert difference(tiny.model(IDS), adapted) < 1e-4
    assert difference(reference.model(IDS), adapted) > 1e-2


def test_a_model_without_an_adapter_is_refused(tiny):
    with pytest.raises(AdapterError, match="the model has no adapter to fuse"):
        fuse(tiny)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_written_model_opens_with_the_same_logits(tiny, out, dtype):
    adapted = adapt(tiny).model(IDS)
    fuse(tiny)
    write_model(tiny, out, dtype=dtype)
    stored = mx.load(str(out / "model.safetensors"))
    assert {str(v.dtype) for v in stored.values()} == {f"mlx.core.{dtype}"}
    again = load_model(out)
    assert difference(again.model(IDS), adapted) < TOLERANCE[dtype]
    assert again.eos_token_ids == tiny.eos_token_ids
    assert again.tokenizer.chat_template == tiny.tokenizer.chat_template


def test_a_quantised_base_fuses_to_a_plain_model_that_mlx_lm_opens(quantised_dir, out, tmp_path):
    save(adapt(load_model(quantised_dir)), tmp_path / "adapter")
    loaded = load_model(quantised_dir)
    load_adapter(loaded, tmp_path / "adapter")
    adapted = loaded.model(IDS)
    fuse(loaded)
    write_model(loaded, out, dtype="float32")
    config = json.loads((out / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & config.keys()
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")
    model, tokenizer = mlx_lm.load(str(out))
    assert difference(model(IDS), adapted) < TOLERANCE["float32"]
    assert tokenizer.has_chat_template
    assert difference(load_model(quantised_dir).model(IDS), adapted) > 1e-2


def test_the_config_keeps_what_the_base_says(tiny, tiny_dir, out):
    write_model(tiny, out, dtype="float16")
    before, after = (json.loads((d / "config.json").read_text()) for d in (tiny_dir, out))
    assert after == before | {"dtype": "float16", "torch_dtype": "float16"}


@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_a_weight_that_float16_cannot_hold_is_named(tiny, out, value):
    layer = tiny.model.model.layers[1].mlp.up_proj
    layer.weight = mx.where(mx.arange(64) == 3, value, layer.weight)
    with pytest.raises(AdapterError) as caught:
        write_model(tiny, out, dtype="float16")
    assert caught.value.message == "model.layers.1.mlp.up_proj.weight is not finite in float16"
    assert caught.value.hint == "write bfloat16 or float32 with --dtype"


def test_what_float16_cannot_hold_bfloat16_can(tiny, out):
    tiny.model.model.norm.weight = mx.full((64,), 7e4)
    write_model(tiny, out, dtype="bfloat16")
    assert load_model(out).model.model.norm.weight[0].item() == pytest.approx(7e4, rel=0.01)


def test_a_model_of_several_shards_opens_and_none_is_too_large(tiny, out, monkeypatch):
    monkeypatch.setattr(fuse_module, "SHARD_BYTES", 100_000)
    calls = []
    write_model(tiny, out, dtype="float32", progress=lambda *call: calls.append(call))
    files = sorted(out.glob("model*.safetensors"))
    assert len(files) > 3
    assert [f.name for f in files] == [
        f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
    ]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    stored = {f.name: mx.load(str(f)) for f in files}
    assert index["weight_map"] == {n: f for f, arrays in stored.items() for n in arrays}
    sizes = [sum(a.nbytes for a in arrays.values()) for arrays in stored.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert all(s <= 100_000 or len(a) == 1 for s, a in zip(sizes, stored.values(), strict=True))
    assert mx.array_equal(load_model(out).model(IDS), tiny.model(IDS))
    assert calls[0] == ("writing weights", 0, len(files))
    assert calls[-1] == ("writing weights", len(files), len(files))


def test_the_files_that_belong_to_a_model_are_copied(tmp_path, out):
    source = tiny_model_dir(tmp_path / "source")
    for name in (
        "special_tokens_map.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
        "LICENSE.md",
    ):
        (source / name).write_text("{}")
    for name in ("notes.txt", "macai_source.json", "model.py", "optimizer.bin"):
        (source / name).write_text("not mine")
    (source / "tokenizer_folder").mkdir()
    loaded = load_model(source)
    write_model(loaded, out, dtype="float16")
    companions = {
        "LICENSE.md",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    assert {f.name for f in companion_files(source)} == companions
    assert {f.name for f in out.iterdir()} == companions | {"config.json", "model.safetensors"}
    for name in companions:
        assert (out / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.slow
def test_smollm2_fuses_and_answers_as_with_its_adapter(smollm2_dir, out):
    ids = mx.array([[1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365]])
    loaded = load_model(smollm2_dir)
    base = loaded.model(ids)
    adapted = adapt(loaded, rank=2, alpha=0.5).model(ids)
    fuse(loaded)
    assert difference(loaded.model(ids), adapted) < 1e-2
    write_model(loaded, out, dtype="float16")
    del loaded
    fused = load_model(out).model(ids)
    assert difference(fused, adapted) < 0.1 < difference(base, adapted)
    assert mx.array_equal(fused.argmax(-1), adapted.argmax(-1))
