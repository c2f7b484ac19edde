import json
import math
import shutil

import mlx.core as mx
import pytest

from macai.errors import AdapterError
from macai.models.adapter import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    load_adapter,
    read_adapter_config,
)
from macai.models.arrays import CHECKSUM
from macai.models.load import load_model
from macai.models.lora import lora_layers
from tests.adapters import ALL, adapt, save
from tests.tiny import tiny_model_dir

IDS = mx.array([[5, 80, 33, 7, 260, 9]])
Q = f"{PREFIX}model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tiny_dir, tmp_path):
    """An adapter for the tiny model, to be broken."""
    return save(adapt(load_model(tiny_dir)), tmp_path / "adapter", name="the-tiny-one")


def change(folder, **values):
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def without_base(folder):
    change(folder, macai={"version": "0", "base": None})


def rewrite(folder, edit):
    weights = mx.load(str(folder / WEIGHTS))
    mx.eval(weights)
    edit(weights)
    mx.save_safetensors(str(folder / WEIGHTS), weights)


def refusal(loaded, folder):
    """Load and return the error; the model must be as it was."""
    before = loaded.model(IDS)
    with pytest.raises(AdapterError) as caught:
        load_adapter(loaded, folder)
    assert not lora_layers(loaded.model)
    assert mx.array_equal(loaded.model(IDS), before)
    message = caught.value.message
    assert message.startswith(str(folder))
    assert "\n" not in message
    assert len(message) < 3 * len(str(folder)) + 300
    return caught.value


@pytest.mark.parametrize(
    ("targets", "rank", "alpha"),
    [(ALL, 4, 6.0), (("q_proj", "lm_head"), 3, 1.0), (("layers.1.mlp.up_proj",), 7, 10.0)],
)
def test_a_saved_adapter_loads_with_the_same_logits_bit_for_bit(
    tiny, tiny_dir, tmp_path, targets, rank, alpha
):
    adapt(tiny, targets, rank=rank, alpha=alpha)
    save(tiny, tmp_path)
    again = load_model(tiny_dir)
    config = load_adapter(again, tmp_path)
    assert (config.sizes.rank, config.sizes.scale()) == (rank, alpha / rank)
    assert lora_layers(again.model).keys() == lora_layers(tiny.model).keys()
    assert mx.array_equal(again.model(IDS), tiny.model(IDS))
    assert not mx.array_equal(again.model(IDS), load_model(tiny_dir).model(IDS))


def test_no_scale_changes_in_float32_on_its_way_through_a_file():
    for rank in range(1, 129):
        for alpha in (*range(1, 65), math.sqrt(2), 0.1):
            scale = alpha / rank
            assert mx.array(scale * rank / rank).item() == mx.array(scale).item()


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (ALL, [f"{n}_proj" for n in ("down", "gate", "k", "o", "q", "up", "v")]),
        (("lm_head", "self_attn.q_proj"), ["lm_head", "q_proj"]),
        (("layers.1.self_attn.q_proj",), ["model.layers.1.self_attn.q_proj"]),
        (
            ("layers.1.self_attn.q_proj", "up_proj"),
            [f"model.layers.{n}" for n in ("0.mlp.up_proj", "1.mlp.up_proj", "1.self_attn.q_proj")],
        ),
    ],
)
def test_target_modules_name_exactly_the_adapted_layers(tiny, tmp_path, targets, names):
    save(adapt(tiny, targets), tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == names


def test_the_files_are_pefts_with_the_identity_of_the_base(folder):
    weights, metadata = mx.load(str(folder / WEIGHTS), return_metadata=True)
    assert metadata.keys() == {"format", CHECKSUM}
    assert metadata["format"] == "pt"
    assert len(weights) == 28
    assert weights[f"{Q}.lora_A.weight"].shape == (4, 64)
    assert weights[f"{Q}.lora_B.weight"].shape == (64, 4)
    assert {w.dtype for w in weights.values()} == {mx.float32}
    config = json.loads((folder / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 6.0, "LORA")
    assert config["macai"]["base"].keys() == {"weights", "tokenizer", "chat_template"}


def test_half_precision_tensors_are_taken(tiny, folder):
    rewrite(folder, lambda w: w.update({k: v.astype(mx.float16) for k, v in w.items()}))
    load_adapter(tiny, folder)
    assert {m.lora_A.dtype for m in lora_layers(tiny.model).values()} == {mx.float32}


def test_rslora_scales_by_the_root_of_the_rank(folder):
    assert read_adapter_config(folder).sizes.scale() == 6 / 4
    change(folder, use_rslora=True)
    assert read_adapter_config(folder).sizes.scale() == 6 / 2


def test_another_rank_is_named_with_the_first_layer(tiny, folder):
    change(folder, r=5)
    error = refusal(tiny, folder)
    assert error.message.endswith(
        "model.layers.0.mlp.down_proj.lora_A is [4, 128], the model needs [5, 128]"
    )
    assert "another rank" in error.hint


def test_an_absurd_rank_is_refused_before_memory_is_asked_for(tiny, folder):
    change(folder, r=10**12)
    assert "the model needs [1000000000000, 128]" in refusal(tiny, folder).message


def test_another_base_is_refused_even_where_the_shapes_fit(folder, tmp_path):
    other = load_model(tiny_model_dir(tmp_path / "other", seed=1))
    error = refusal(other, folder)
    assert error.message == (
        f"{folder}: trained on another base: its weights differ from those of {other.path}"
    )
    assert error.hint == "it belongs to 'the-tiny-one'"


@pytest.mark.parametrize("part", ["tokenizer", "chat_template"])
def test_another_tokenizer_or_template_is_refused(tiny_dir, folder, tmp_path, part):
    copy = shutil.copytree(tiny_dir, tmp_path / "copy")
    if part == "tokenizer":
        file = copy / "tokenizer.json"
        file.write_text(file.read_text() + "\n")
    else:
        file = copy / "tokenizer_config.json"
        config = json.loads(file.read_text())
        config["chat_template"] += "{# another #}"
        file.write_text(json.dumps(config))
    error = refusal(load_model(copy), folder)
    assert f"trained on another base: its {part} differ" in error.message


def test_an_adapter_of_another_tool_loads_where_its_shapes_fit(folder, tmp_path):
    without_base(folder)
    other = load_model(tiny_model_dir(tmp_path / "other", seed=1))
    before = other.model(IDS)
    assert load_adapter(other, folder).base is None
    assert not mx.array_equal(other.model(IDS), before)


def turned(content):
    """Return a file with one bit of its last tensor changed."""
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


BROKEN_FILES = {
    "no config": (lambda d: (d / CONFIG).unlink(), f"no {CONFIG} in it"),
    "no folder": (lambda d: shutil.rmtree(d), f"no {CONFIG} in it"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), f"no {WEIGHTS} in it"),
    "weights truncated": (
        lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-100]),
        f"{WEIGHTS}: cannot be read",
    ),
    "a bit turned": (
        lambda d: (d / WEIGHTS).write_bytes(turned((d / WEIGHTS).read_bytes())),
        "damaged: its values are not those that were saved",
    ),
    "weights empty": (lambda d: (d / WEIGHTS).write_bytes(b""), f"{WEIGHTS}: cannot be read"),
    "no tensors": (lambda d: rewrite(d, lambda w: w.clear()), "holds no tensors"),
    "half a pair": (
        lambda d: rewrite(d, lambda w: w.pop(f"{Q}.lora_B.weight")),
        f"{Q}.lora_B.weight is missing (1 such)",
    ),
    "unknown tensor": (
        lambda d: rewrite(d, lambda w: w.update({f"{Q}.lora_B.bias": mx.zeros(64)})),
        f"{Q}.lora_B.bias is no A or B of a linear layer (1 such)",
    ),
    "tensor without the prefix": (
        lambda d: rewrite(d, lambda w: w.update(extra=mx.zeros(3))),
        "extra is no A or B of a linear layer (1 such)",
    ),
    "a layer too many": (
        lambda d: rewrite(
            d,
            lambda w: w.update(
                {k.replace("layers.0", "layers.7"): v for k, v in w.items() if k.startswith(Q)}
            ),
        ),
        "the model has no linear layer model.layers.7.self_attn.q_proj (1 such)",
    ),
    "a layer that is not linear": (
        lambda d: rewrite(
            d,
            lambda w: w.update(
                {k.replace("q_proj", "rope"): v for k, v in w.items() if k.startswith(Q)}
            ),
        ),
        "the model has no linear layer model.layers.0.self_attn.rope (1 such)",
    ),
    "a whole layer missing": (
        lambda d: rewrite(d, lambda w: [w.pop(f"{Q}.lora_{x}.weight") for x in "AB"]),
        f"{CONFIG} names model.layers.0.self_attn.q_proj, {WEIGHTS} has nothing for it (1 such)",
    ),
    "a layer the config does not name": (
        lambda d: change(d, target_modules=["q_proj"]),
        f"{CONFIG} does not name model.layers.0.mlp.down_proj, {WEIGHTS} has tensors for it (12",
    ),
    "A transposed": (
        lambda d: rewrite(d, lambda w: w.update({f"{Q}.lora_A.weight": w[f"{Q}.lora_A.weight"].T})),
        "q_proj.lora_A is [64, 4], the model needs [4, 64]",
    ),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_files_are_refused_and_the_first_mismatch_named(tiny, folder, case):
    damage, message = BROKEN_FILES[case]
    damage(folder)
    assert message in refusal(tiny, folder).message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 1]]),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", {}),
        ("bias", "all"),
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("r", 0),
        ("r", -4),
        ("lora_alpha", math.nan),
        ("lora_alpha", math.inf),
    ],
)
def test_what_macai_cannot_represent_is_refused_by_name(tiny, folder, key, value):
    change(folder, **{key: value})
    error = refusal(tiny, folder)
    assert "not supported by this version" in error.message
    assert key in error.message


@pytest.mark.parametrize(
    "how",
    [
        {"target_modules": ".*_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [0]},
        {"target_modules": ["q_proj"], "exclude_modules": ["k_proj"]},
        {"target_modules": None},
    ],
)
def test_target_modules_written_another_way_are_left_to_the_tensors(tiny, folder, how):
    change(folder, **how)
    load_adapter(tiny, folder)
    assert len(lora_layers(tiny.model)) == 14


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_a_start_that_leaves_the_base_alone_is_accepted(folder, start):
    change(folder, init_lora_weights=start)
    assert read_adapter_config(folder).sizes.rank == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '"r"',
        "{",
        "[" * 100_000,
        '{"r": 4}',
        '{"r": null, "lora_alpha": 4}',
        '{"r": Infinity, "lora_alpha": 4}',
        '{"r": NaN, "lora_alpha": 4}',
        '{"r": [4], "lora_alpha": 4}',
        '{"r": 4, "lora_alpha": {}}',
        '{"r": 4, "lora_alpha": 8, "lora_dropout": "much", "peft_type": "LORA"}',
        '{"r": 4, "lora_alpha": 8, "macai": 3}',
        '{"r": 4, "lora_alpha": 8, "macai": {"base": {"weights": "1"}}}',
        '{"r": 4, "lora_alpha": 8, "macai": {"base": [1, 2, 3]}}',
        '{"r": 4, "lora_alpha": ' + "9" * 5000 + "}",
    ],
)
def test_a_hostile_config_is_one_message(tiny, folder, text):
    (folder / CONFIG).write_text(text)
    assert f"{CONFIG} is no LoRA configuration" in refusal(tiny, folder).message


def test_a_config_that_is_no_text_is_one_message(tiny, folder):
    (folder / CONFIG).write_bytes(b'{"r": "\xff"}')
    assert "is no LoRA configuration" in refusal(tiny, folder).message


def test_where_all_weights_were_trained_there_is_no_adapter_but_a_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(AdapterError, match=f"no {CONFIG} in it") as caught:
        read_adapter_config(tmp_path)
    assert f"--model {tmp_path / 'model'}" in caught.value.hint
