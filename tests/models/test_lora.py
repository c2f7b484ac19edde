import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macai.errors import UsageError
from macai.models.load import load_model
from macai.models.lora import (
    LoRALinear,
    add_lora,
    linear_paths,
    linear_shape,
    lora_layers,
    target_paths,
)
from tests.adapters import adapt, randomise

IDS = mx.array([[5, 80, 33, 7, 260, 9], [1, 2, 3, 4, 5, 6]])
ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def paths_of(*tails):
    return {f"model.layers.{n}.{tail}" for n in (0, 1) for tail in tails}


def test_a_new_adapter_changes_nothing_bit_for_bit(tiny):
    before = tiny.model(IDS)
    add_lora(tiny.model, target_paths(tiny.model, ["all-linear"]), rank=4, alpha=8)
    assert len(lora_layers(tiny.model)) == 14
    assert mx.array_equal(tiny.model(IDS), before)


def test_an_adapter_adds_scale_times_b_a_to_the_weight(tiny):
    x = mx.random.normal((3, 5, 64), key=mx.random.key(0))
    path = "model.layers.1.self_attn.q_proj"
    plain = dict(tiny.model.named_modules())[path]
    add_lora(tiny.model, [path], rank=4, alpha=6)
    randomise(tiny.model)
    (layer,) = lora_layers(tiny.model).values()
    a, b = (np.array(layer[name], np.float64) for name in ("lora_A", "lora_B"))
    weight = np.array(plain.weight, np.float64) + 6 / 4 * b @ a
    expected = np.array(x, np.float64) @ weight.T
    assert np.abs(np.array(layer(x)) - expected).max() < 1e-5
    assert np.abs(np.array(layer.delta()) - 6 / 4 * b @ a).max() < 1e-6


def test_the_logits_change_once_b_does(tiny):
    before = tiny.model(IDS)
    adapt(tiny)
    assert mx.abs(tiny.model(IDS) - before).max().item() > 1e-2


def test_only_a_and_b_are_trained(tiny):
    targets = target_paths(tiny.model, ["q_proj"])
    add_lora(tiny.model, targets, rank=4, alpha=8)
    trained = {name for name, _ in tree_flatten(tiny.model.trainable_parameters())}
    assert trained == {f"{p}.lora_{x}" for p in targets for x in "AB"}


def test_all_linear_is_every_layer_but_the_head(tiny):
    assert set(target_paths(tiny.model, ["all-linear"])) == paths_of(*ATTENTION, *MLP)
    assert set(linear_paths(tiny.model)) == paths_of(*ATTENTION, *MLP) | {"lm_head"}
    assert set(target_paths(tiny.model, ["all-linear", "lm_head"])) == set(linear_paths(tiny.model))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], paths_of("self_attn.q_proj")),
        (["self_attn.q_proj", "mlp.up_proj"], paths_of("self_attn.q_proj", "mlp.up_proj")),
        (["layers.1.mlp.up_proj"], {"model.layers.1.mlp.up_proj"}),
        (["model.layers.0.mlp.up_proj"], {"model.layers.0.mlp.up_proj"}),
        (["lm_head"], {"lm_head"}),
        (["v_proj", "self_attn.v_proj"], paths_of("self_attn.v_proj")),
    ],
)
def test_a_target_is_the_tail_of_a_path(tiny, targets, expected):
    found = target_paths(tiny.model, targets)
    assert len(found) == len(expected)
    assert set(found) == expected


def test_the_last_blocks_alone_can_be_chosen(tiny):
    paths = target_paths(tiny.model, ["all-linear", "lm_head"], last_blocks=1)
    whole = target_paths(tiny.model, ["all-linear"])
    assert set(paths) == {p for p in whole if ".layers.1." in p} | {"lm_head"}
    assert target_paths(tiny.model, ["all-linear"], last_blocks=2) == whole
    with pytest.raises(UsageError, match="3 layers with an adapter, and the model has 2"):
        target_paths(tiny.model, ["all-linear"], last_blocks=3)


@pytest.mark.parametrize("target", ["proj", "_proj", "attn.q_proj", "mlp", "", "Q_proj"])
def test_a_target_matches_whole_names_only(tiny, target):
    with pytest.raises(UsageError, match="no linear layer is called"):
        target_paths(tiny.model, [target])


def test_unknown_targets_are_all_named_with_what_there_is(tiny):
    with pytest.raises(UsageError) as caught:
        target_paths(tiny.model, ["wq", "q_proj", "c_attn"])
    assert caught.value.message == "no linear layer is called 'wq', 'c_attn'"
    assert caught.value.hint.startswith("this model has down_proj, gate_proj, k_proj, lm_head")
    assert "'all-linear'" in caught.value.hint


def test_paths_come_in_the_models_order():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    assert linear_paths(model) == [f"layers.{n}" for n in range(12)]


def test_an_adapted_layer_is_still_one_linear_layer(tiny):
    before = linear_paths(tiny.model)
    add_lora(tiny.model, target_paths(tiny.model, ["k_proj"]), rank=2, alpha=2)
    assert linear_paths(tiny.model) == before
    assert set(target_paths(tiny.model, ["k_proj"])) == set(lora_layers(tiny.model))


def test_the_seed_alone_decides_where_an_adapter_starts(tiny_dir):
    def start(seed):
        mx.random.seed(int(mx.random.randint(0, 1000).item()))  # the global state is not used
        model = load_model(tiny_dir).model
        add_lora(model, target_paths(model, ["all-linear"]), rank=4, alpha=8, seed=seed)
        return [layer.lora_A for layer in lora_layers(model).values()]

    first, again, other = start(3), start(3), start(4)
    assert all(mx.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(mx.array_equal(a, b) for a, b in zip(first, other, strict=True))
    same_shape = [a for a in first if a.shape == first[0].shape]
    assert not mx.array_equal(same_shape[0], same_shape[1])


def test_a_is_uniform_within_one_over_the_root_of_its_inputs():
    layer = LoRALinear(nn.Linear(256, 8), rank=64, scale=1, dropout=0, key=mx.random.key(0))
    a, bound = np.array(layer.lora_A), 1 / math.sqrt(256)
    assert np.abs(a).max() <= bound
    assert abs(a.std() - bound / math.sqrt(3)) < bound / 50
    assert abs(a.mean()) < bound / 50
    assert not np.array(layer.lora_B).any()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_quantised_base_of_any_width_can_be_adapted(bits):
    linear = nn.Linear(192, 48)
    quantised = nn.QuantizedLinear.from_linear(linear, group_size=64, bits=bits)
    assert linear_shape(quantised) == linear_shape(linear) == (48, 192)
    layer = LoRALinear(quantised, rank=4, scale=2.0, dropout=0, key=mx.random.key(0))
    x = mx.random.normal((2, 192), key=mx.random.key(1))
    assert layer.lora_A.shape == (4, 192)
    assert mx.array_equal(layer(x), quantised(x))
    layer["lora_B"] = mx.random.normal((48, 4), key=mx.random.key(2))
    difference = layer(x) - quantised(x) - x @ layer.delta().T
    assert mx.abs(difference).max().item() < 1e-4


def test_the_result_has_the_type_of_the_input():
    linear = nn.Linear(32, 16)
    linear.set_dtype(mx.float16)
    layer = LoRALinear(linear, rank=4, scale=2.0, dropout=0, key=mx.random.key(0))
    assert layer.lora_A.dtype == mx.float32
    assert layer(mx.zeros((1, 32), mx.float16)).dtype == mx.float16


def test_dropout_acts_on_the_adapter_alone_and_only_while_training():
    linear = nn.Linear(32, 16)
    layer = LoRALinear(linear, rank=4, scale=2.0, dropout=0.5, key=mx.random.key(0))
    x = mx.random.normal((4, 32), key=mx.random.key(1))
    assert mx.array_equal(layer(x), linear(x))  # B is zero: what is dropped cannot matter
    layer["lora_B"] = mx.ones((16, 4))
    assert not mx.array_equal(layer(x), layer(x))
    layer.eval()
    assert mx.array_equal(layer(x), layer(x))
