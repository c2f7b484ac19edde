import json

import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.errors import AdapterError, UsageError
from macai.models.adapter import CONFIG, WEIGHTS, load_adapter
from macai.models.arrays import named_arrays
from macai.models.fuse import fuse, write_model
from macai.models.load import load_model
from macai.models.lora import add_lora, target_paths
from tests.adapters import adapt, save
from tests.tiny import tiny_model_dir

IDS = mx.array([[5, 80, 33, 7, 260, 9]])
WHOLE = ("embed_tokens", "lm_head", "model.norm")


@pytest.fixture(scope="module")
def tied_dir(tmp_path_factory):
    """The tiny model with one matrix for embedding and head."""
    folder = tiny_model_dir(tmp_path_factory.mktemp("tied"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    weights = mx.load(str(folder / "model.safetensors"))
    mx.eval(weights)
    del weights["lm_head.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    return folder


def test_the_named_modules_are_trained_beside_a_and_b(tiny):
    paths = target_paths(tiny.model, ["q_proj"])
    add_lora(tiny.model, paths, rank=2, alpha=2, modules_to_save=WHOLE)
    trained = named_arrays(tiny.model.trainable_parameters())
    factors = {f"{path}.lora_{x}" for path in paths for x in "AB"}
    whole = {f"{p}.weight" for p in ("model.embed_tokens", "lm_head", "model.norm")}
    assert trained.keys() == factors | whole


@pytest.mark.parametrize("modules", [WHOLE, ("lm_head",), ("embed_tokens", "layers.1.mlp")])
def test_saved_modules_come_back_with_the_same_logits_bit_for_bit(
    tiny, tiny_dir, tmp_path, modules
):
    before = tiny.model(IDS)
    save(adapt(tiny, ("q_proj",), modules_to_save=modules), tmp_path)
    again = load_model(tiny_dir)
    load_adapter(again, tmp_path)
    assert mx.array_equal(again.model(IDS), tiny.model(IDS)).item()
    assert mx.abs(tiny.model(IDS) - before).max().item() > 1e-2
    fuse(again)
    assert mx.abs(again.model(IDS) - tiny.model(IDS)).max().item() < 1e-4
    out = tmp_path / "fused"
    out.mkdir()
    write_model(again, out, dtype="float32")
    assert mx.abs(load_model(out).model(IDS) - tiny.model(IDS)).max().item() < 1e-4


def test_a_quantised_module_becomes_a_plain_one(tiny):
    nn.quantize(tiny.model, group_size=32, bits=4)
    before = tiny.model(IDS)
    add_lora(tiny.model, ["model.layers.0.mlp.up_proj"], rank=2, alpha=2, modules_to_save=WHOLE)
    assert type(tiny.model.model.embed_tokens) is nn.Embedding
    assert type(tiny.model.lm_head) is nn.Linear
    assert mx.abs(tiny.model(IDS) - before).max().item() < 1e-4


def test_one_matrix_for_two_is_written_as_the_two_that_peft_has(tied_dir, tmp_path):
    loaded = load_model(tied_dir)
    save(adapt(loaded, ("q_proj",), modules_to_save=("embed_tokens",)), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["modules_to_save"] == ["lm_head", "model.embed_tokens"]
    again = load_model(tied_dir)
    load_adapter(again, tmp_path)
    assert mx.array_equal(again.model(IDS), loaded.model(IDS)).item()
    weights = mx.load(str(tmp_path / WEIGHTS))
    mx.eval(weights)
    head = "base_model.model.lm_head.weight"
    mx.save_safetensors(str(tmp_path / WEIGHTS), weights | {head: 2 * weights[head]})
    with pytest.raises(AdapterError, match="the embedding and the head differ in it"):
        load_adapter(load_model(tied_dir), tmp_path)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (("embed",), "no module is called 'embed'"),
        (("q_proj",), "self_attn.q_proj has an adapter and cannot be trained whole as well"),
        (("layers.0",), "layers.0 has an adapter"),
    ],
)
def test_a_name_that_cannot_be_trained_whole_is_refused(tiny, modules, message):
    with pytest.raises(UsageError, match=message):
        add_lora(
            tiny.model,
            target_paths(tiny.model, ["q_proj"]),
            rank=2,
            alpha=2,
            modules_to_save=modules,
        )


def test_a_module_that_is_missing_or_of_another_shape_is_named(tiny, tiny_dir, tmp_path):
    save(adapt(tiny, ("q_proj",), modules_to_save=("lm_head",)), tmp_path)
    weights = mx.load(str(tmp_path / WEIGHTS))
    mx.eval(weights)
    head = weights.pop("base_model.model.lm_head.weight")
    mx.save_safetensors(str(tmp_path / WEIGHTS), weights)
    with pytest.raises(AdapterError, match=r"names the module lm_head, .* has nothing for it"):
        load_adapter(load_model(tiny_dir), tmp_path)
    weights["base_model.model.lm_head.weight"] = head.T
    mx.save_safetensors(str(tmp_path / WEIGHTS), weights)
    with pytest.raises(AdapterError, match=r"lm_head.weight is \[64, 476\], the model needs"):
        load_adapter(load_model(tiny_dir), tmp_path)
