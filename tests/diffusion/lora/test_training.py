"""New LoRAs start by changing nothing, and only they are trained."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from macai.diffusion.lora.apply import attach, detach, set_strengths
from macai.diffusion.lora.layers import adapted, layers_of
from macai.diffusion.lora.names import target_paths
from macai.diffusion.lora.training import add_lora, trained_lora
from macai.errors import AdapterError, UsageError
from tests.diffusion.lora.lora_cases import UNETS, answers_of, components_of
from tests.diffusion.models.unet_cases import inputs_of


def with_new_lora(targets="conv", **more):
    components = components_of("sd1")
    for name, model in components.items():
        paths = target_paths(layers_of(components)[name], targets)
        add_lora(model, paths, name="new", **({"rank": 3, "alpha": 6.0} | more))
    return components


def test_a_new_lora_changes_nothing_bit_for_bit():
    base = answers_of(components_of("sd1"), "sd1")
    answers = answers_of(with_new_lora(), "sd1")
    assert all(np.array_equal(answers[n], base[n]) for n in base)


def test_only_the_lora_is_trained():
    components = with_new_lora("attention")
    trained = {n for n, _ in tree_flatten(components["unet"].trainable_parameters())}
    paths = target_paths(layers_of(components)["unet"], "attention")
    assert trained == {f"{p}.branches.0.lora_{x}" for p in paths for x in "AB"}


def test_a_step_of_training_lowers_the_loss_and_leaves_the_base_alone():
    unet = with_new_lora(alpha=3.0)["unet"]
    inputs = {k: mx.array(v) for k, v in inputs_of(UNETS["sd1"]).items()}
    frozen = {n: a for n, a in tree_flatten(unet.parameters()) if ".branches." not in n}

    def loss(model):
        return mx.mean(mx.square(model(**inputs)))

    before, gradients = nn.value_and_grad(unet, loss)(unet)
    stepped = tree_map(lambda p, g: p - 0.05 * g, unet.trainable_parameters(), gradients)
    unet.update(stepped)
    assert loss(unet).item() < before.item()
    after = dict(tree_flatten(unet.parameters()))
    assert all(mx.array_equal(after[n], a) for n, a in frozen.items())


@pytest.mark.parametrize(("start", "deviation"), [("gaussian", 1 / 8), ("kaiming", 1 / 48**0.5)])
def test_the_first_factor_is_drawn_as_in_diffusers_or_kohyas_scripts(start, deviation):
    unet = with_new_lora("conv", rank=8, start=start)["unet"]
    layers = adapted(unet)
    drawn = np.array(layers["mid_block.attentions.0.proj_in"].branches[0].lora_A)
    assert drawn.shape == (8, 1, 1, 32)
    if start == "gaussian":
        assert drawn.std() == pytest.approx(deviation, rel=0.2)
    else:
        assert np.abs(drawn).max() == pytest.approx(32**-0.5, rel=0.05)
        kernel = np.array(layers["mid_block.resnets.0.conv1"].branches[0].lora_A)
        assert np.abs(kernel).max() == pytest.approx((32 * 9) ** -0.5, rel=0.05)


def test_layers_start_with_different_numbers_that_the_seed_decides():
    first, again, other = (with_new_lora("attention", seed=s)["unet"] for s in (1, 1, 2))
    downs = [
        {p: np.array(layer.branches[0].lora_A) for p, layer in adapted(unet).items()}
        for unet in (first, again, other)
    ]
    assert all(np.array_equal(downs[0][p], downs[1][p]) for p in downs[0])
    assert not any(np.array_equal(downs[0][p], downs[2][p]) for p in downs[0])
    same_shape = [a for a in downs[0].values() if a.shape == (3, 16)]
    assert len({a.tobytes() for a in same_shape}) == len(same_shape) > 5


def test_the_scale_is_alpha_by_rank():
    lora = trained_lora(with_new_lora("attention", rank=4, alpha=6), "new")
    assert {u.scale for updates in lora.modules.values() for u in updates.values()} == {1.5}


def test_dropout_is_only_for_training():
    components = with_new_lora("attention", dropout=0.5)
    unet = components["unet"]
    for layer in adapted(unet).values():
        layer.branches[0].lora_B = mx.ones_like(layer.branches[0].lora_B)
    unet.eval()
    layer = next(iter(adapted(unet).values()))
    x = mx.ones((4, layer.weight.shape[1]))
    assert mx.array_equal(layer(x), layer(x))
    unet.train()
    assert not mx.array_equal(layer(x), layer(x))


def test_a_new_lora_can_be_trained_beside_a_loaded_one():
    components = with_new_lora("attention")
    loaded = trained_lora(components, "new")
    detach(components)
    attach(components, loaded, name="loaded", strength=0.5)
    paths = list(loaded.modules["unet"])
    add_lora(components["unet"], paths, name="next", rank=2, alpha=2)
    names = {
        n.rpartition("branches.")[2]
        for n, _ in tree_flatten(components["unet"].trainable_parameters())
    }
    assert names == {"1.lora_A", "1.lora_B"}
    set_strengths(components, {"loaded": 0.0})
    assert set(trained_lora(components, "next").modules["unet"]) == set(paths)


def test_a_name_that_is_taken_or_unknown_is_refused():
    components = with_new_lora("attention")
    with pytest.raises(UsageError, match="there is a LoRA called 'new' already"):
        add_lora(components["unet"], ["conv_in"], name="new", rank=1, alpha=1)
    with pytest.raises(AdapterError, match="the model has no LoRA called 'old'"):
        trained_lora(components, "old")
