"""LoRAs beside the weights and in them do the same, and go away without a trace."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macai.diffusion.lora.apply import adapters, attach, detach, fuse, set_strengths
from macai.diffusion.lora.formats import LoraFile, read_lora
from macai.diffusion.lora.layers import (
    DeltaBranch,
    LoraConv2d,
    LoraLinear,
    LowRankBranch,
    adaptable,
    adapted,
    layers_of,
    put,
    weight_of,
)
from macai.diffusion.lora.updates import Full, LowRank, Magnitude, Update, delta
from macai.errors import AdapterError, UsageError
from tests.diffusion.lora.lora_cases import (
    UNETS,
    answers_of,
    components_of,
    drawn,
    lora_file,
    pairs_of,
    spelled,
    worst,
    write,
)
from tests.diffusion.models.unet_cases import inputs_of

EQUAL = 100  # dB
CHANGED = 35


@pytest.fixture
def sd1(tmp_path):
    """Return a tiny pipeline's models and a LoRA for nearly all of their layers."""
    file, components = lora_file(tmp_path, "sd1", "kohya", targets="conv")
    return components, read_lora(file, layers_of(components))


def as_fused(lora, strength, kind="sd1"):
    components = components_of(kind)
    fuse(components, [(lora, strength)])
    return answers_of(components, kind)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_beside_the_weights_and_in_them_a_lora_answers_the_same(kind, tmp_path):
    file, components = lora_file(tmp_path, kind, "kohya", targets="conv")
    base, lora = answers_of(components, kind), read_lora(file, layers_of(components))
    attach(components, lora, name="a", strength=0.7)
    beside = answers_of(components, kind)
    assert all(worst({n: beside[n]}, {n: base[n]}) < CHANGED for n in beside)
    assert worst(as_fused(lora, 0.7, kind), beside) > EQUAL


def test_a_strength_changes_without_loading_anything(sd1):
    components, lora = sd1
    base = answers_of(components, "sd1")
    attach(components, lora, name="a")
    layers = adapted(components["unet"])
    for strength in (0.3, -1.0, 1.0):
        set_strengths(components, {"a": strength})
        assert worst(answers_of(components, "sd1"), as_fused(lora, strength)) > EQUAL
    set_strengths(components, {"a": 0.0})
    off = answers_of(components, "sd1")
    assert all(np.array_equal(off[n], base[n]) for n in base)
    assert adapted(components["unet"]) == layers


def test_a_strength_changes_inside_a_compiled_function(sd1):
    components, lora = sd1
    attach(components, lora, name="a")
    layer = next(iter(adapted(components["unet"]).values()))
    x = mx.array(drawn("x", 1, 8, 8, layer.weight.shape[-1]))
    compiled = mx.compile(layer, inputs=[layer.state])
    answers = []
    for strength in (1.0, 0.25):
        set_strengths(components, {"a": strength})
        answers.append(np.array(compiled(x)))
        assert worst({"": answers[-1]}, {"": np.array(layer(x))}) > EQUAL
    assert worst({"": answers[0]}, {"": answers[1]}) < CHANGED


def test_detached_the_models_are_as_they_were_bit_for_bit(sd1):
    components, lora = sd1
    base, before = (
        answers_of(components, "sd1"),
        dict(tree_flatten(components["unet"].parameters())),
    )
    attach(components, lora, name="a")
    assert len(adapted(components["unet"])) == lora.matched["unet"]
    detach(components)
    assert adapters(components) == {}
    assert not adapted(components["unet"])
    after = dict(tree_flatten(components["unet"].parameters()))
    assert set(after) == set(before)
    assert all(mx.array_equal(after[n], before[n]) for n in before)
    assert all(np.array_equal(a, base[n]) for n, a in answers_of(components, "sd1").items())


def other_lora(tmp_path, components):
    layers = layers_of(components)
    pairs = pairs_of({"unet": layers["unet"]}, rank=2, targets="attention")
    pairs = {k: {"down": -pair["down"], "up": 0.7 * pair["up"]} for k, pair in pairs.items()}
    return read_lora(write(tmp_path / "b.safetensors", spelled(pairs, "peft", layers)), layers)


def test_two_loras_have_a_strength_each_and_leave_one_by_one(sd1, tmp_path):
    components, first = sd1
    second = other_lora(tmp_path, components)
    attach(components, first, name="a", strength=0.5)
    attach(components, second, name="b")
    assert adapters(components) == {
        "a": sum(first.matched.values()),
        "b": sum(second.matched.values()),
    }
    set_strengths(components, {"b": 1.5})
    both = components_of("sd1")
    assert fuse(both, [(first, 0.5), (second, 1.5)]).fused == sum(first.matched.values())
    assert worst(answers_of(components, "sd1"), answers_of(both, "sd1")) > EQUAL
    detach(components, ["a"])
    assert adapters(components) == {"b": sum(second.matched.values())}
    assert worst(answers_of(components, "sd1"), as_fused(second, 1.5)) > EQUAL


def test_components_may_get_their_lora_one_after_the_other(sd1):
    components, lora = sd1
    for name in ("text_encoder", "unet"):
        attach({name: components[name]}, lora, name="a")
    assert worst(answers_of(components, "sd1"), as_fused(lora, 1.0)) > EQUAL


def test_what_is_fused_can_have_another_lora_beside_it(sd1, tmp_path):
    components, first = sd1
    second = other_lora(tmp_path, components)
    attach(components, second, name="b")
    fuse(components, [(first, 0.5)])
    both = components_of("sd1")
    fuse(both, [(first, 0.5), (second, 1.0)])
    assert worst(answers_of(components, "sd1"), answers_of(both, "sd1")) > EQUAL


def test_a_model_with_a_lora_is_frozen(sd1):
    components, lora = sd1
    attach(components, lora, name="a")
    assert not tree_flatten(components["unet"].trainable_parameters())


def test_an_adapted_layer_still_shows_its_weight(sd1):
    components, lora = sd1
    attach(components, lora, name="a")
    layers = adapted(components["unet"])
    assert all(layer.weight is layer.base.weight for layer in layers.values())
    assert {type(layer) for layer in layers.values()} == {LoraLinear, LoraConv2d}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, lora: attach(c, lora, name="a"), "there is a LoRA called 'a' already"),
        (lambda c, lora: set_strengths(c, {"b": 1.0}), "no LoRA is called 'b'"),
        (lambda c, lora: set_strengths(c, {"a": float("nan")}), "the strength of 'a' is nan"),
        (lambda c, lora: set_strengths(c, {"a": float("inf")}), "the strength of 'a' is inf"),
    ],
)
def test_names_and_strengths_that_cannot_be_are_refused(call, message, sd1):
    components, lora = sd1
    attach(components, lora, name="a")
    with pytest.raises(UsageError, match=message):
        call(components, lora)


def magnitude(size, per, *, inside):
    vector = mx.array(1 + drawn(f"dora {size}", size, spread=0.1))
    return Magnitude(vector=vector, per=per, strength_inside=inside)


def every_kind(layers):
    """Return a LoRA with an update of every kind: LoCon's, DoRA of both sorts, whole, with bias."""
    unet, text = layers["unet"], layers["text_encoder"]
    attention = [p for p in unet if ".attn" in p]
    convolutions = [p for p in unet if p.endswith(".conv1")]
    (linear_1, linear_2, linear_3), (conv_1, conv_2, conv_3) = attention[:3], convolutions[:3]
    mlp = "text_model.encoder.layers.1.mlp.fc2"

    def low(path, **more):
        out, into, *kernel = (unet | text)[path]
        down = mx.array(drawn(path, 2, into, *kernel))
        up = mx.array(drawn(path + "u", out, 2, *(1,) * len(kernel)))
        return Update(factors=LowRank(down=down, up=up), scale=0.5, **more)

    out, into, *kernel = unet[conv_2]
    tucker = LowRank(
        down=mx.array(drawn("d", 2, into, 1, 1)),
        mid=mx.array(drawn("m", 2, 2, *kernel)),
        up=mx.array(drawn("u", out, 2, 1, 1)),
    )
    return {
        "unet": {
            linear_1: low(linear_1, magnitude=magnitude(unet[linear_1][0], "output", inside=True)),
            linear_2: low(linear_2, magnitude=magnitude(unet[linear_2][1], "input", inside=False)),
            linear_3: Update(factors=Full(diff=mx.array(drawn("f", *unet[linear_3])))),
            conv_1: low(conv_1, magnitude=magnitude(unet[conv_1][1], "input", inside=False)),
            conv_2: Update(factors=tucker, scale=0.8),
            conv_3: low(conv_3, bias=mx.array(drawn("b", unet[conv_3][0]))),
        },
        "text_encoder": {mlp: low(mlp, bias=mx.array(drawn("b", text[mlp][0])))},
    }


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_updates_of_every_kind_do_the_same_beside_the_weights_and_in_them(strength):
    components = components_of("sd1")
    base, modules = answers_of(components, "sd1"), every_kind(layers_of(components))
    lora = LoraFile(modules=modules, metadata={}, format="kohya", name="kinds")
    attach(components, lora, name="a", strength=strength)
    beside = answers_of(components, "sd1")
    assert all(worst({n: beside[n]}, {n: base[n]}) < CHANGED for n in beside)
    kinds = {type(b) for layer in adapted(components["unet"]).values() for b in layer.branches}
    assert kinds == {LowRankBranch, DeltaBranch}
    assert worst(beside, as_fused(lora, strength)) > EQUAL


def test_each_branch_adds_its_delta_to_what_its_layer_computes():
    components = components_of("sd1")
    modules = every_kind(layers_of(components))
    lora = LoraFile(modules=modules, metadata={}, format="kohya", name="kinds")
    attach(components, lora, name="a", strength=0.4)
    for path, layer in adapted(components["unet"]).items():
        update, weight = modules["unet"][path], weight_of(layer.base)
        x = mx.array(drawn(path, 2, 9, 8, weight.shape[1]))
        change = delta(update, weight=weight, strength=0.4)
        if weight.ndim == 2:
            added = x @ change.T
        else:
            added = mx.conv2d(
                x, change.transpose(0, 2, 3, 1), layer.base.stride, layer.base.padding
            )
        if update.bias is not None:
            added = added + 0.4 * update.bias
        wanted = np.array(layer.base(x) + added)
        assert worst({"": np.array(layer(x))}, {"": wanted}) > EQUAL


def quantised(kind="sd1", bits=8):
    components = components_of(kind)
    nn.quantize(
        components["unet"],
        group_size=32,
        bits=bits,
        class_predicate=lambda path, m: isinstance(m, nn.Linear) and m.weight.shape[-1] % 32 == 0,
    )
    return components


def quantised_layers(components):
    layers = adaptable(components["unet"]).values()
    return sum(isinstance(getattr(m, "base", m), nn.QuantizedLinear) for m in layers)


def dequantised(components):
    """Put plain layers in place of the quantised ones: what they mean."""
    for path, layer in adaptable(components["unet"]).items():
        if isinstance(layer, nn.QuantizedLinear):
            plain = nn.Linear(1, 1, bias="bias" in layer)
            plain.weight = weight_of(layer)
            if "bias" in layer:
                plain.bias = layer.bias
            put(components["unet"], {path: plain})
    return components


def test_a_lora_beside_quantised_weights_is_added_to_what_they_mean(sd1):
    _, lora = sd1
    components = quantised()
    count = quantised_layers(components)
    assert count > 20
    attach(components, lora, name="a")
    plain = dequantised(quantised())
    assert quantised_layers(plain) == 0
    fuse(plain, [(lora, 1.0)])
    assert worst(answers_of(components, "sd1"), answers_of(plain, "sd1")) > EQUAL


def test_fused_into_quantised_weights_a_lora_stays_beside_them(sd1, tmp_path):
    _, lora = sd1
    components = quantised()
    count, second = quantised_layers(components), other_lora(tmp_path, components)
    done = fuse(components, [(lora, 0.5), (second, 1.0), (lora, 0.2)])
    targets = {("unet", p) for p in lora.modules["unet"]}
    beside = sum(
        isinstance(layer.base, nn.QuantizedLinear) for layer in adapted(components["unet"]).values()
    )
    assert quantised_layers(components) == count
    assert done.beside == beside == len(adapted(components["unet"]))
    assert done.fused == len(targets) - beside + lora.matched["text_encoder"]
    assert set(adapters(components)) == {lora.name, f"{lora.name} 2", second.name}
    plain = dequantised(quantised())
    fuse(plain, [(lora, 0.7), (second, 1.0)])
    assert worst(answers_of(components, "sd1"), answers_of(plain, "sd1")) > EQUAL


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.5)])
def test_quantised_again_the_loss_is_stated(bits, most, sd1):
    _, lora = sd1
    components, plain = quantised(bits=bits), dequantised(quantised(bits=bits))
    count = quantised_layers(components)
    done = fuse(components, [(lora, 1.0)], quantised="requantise")
    fuse(plain, [(lora, 1.0)])
    assert quantised_layers(components) == count
    assert (done.fused, done.beside) == (sum(lora.matched.values()), 0)
    layers, exact = adaptable(components["unet"]), adaptable(plain["unet"])
    assert set(done.loss) == {
        f"unet.{p}" for p in lora.modules["unet"] if isinstance(layers[p], nn.QuantizedLinear)
    }
    for name, loss in done.loss.items():
        path = name.removeprefix("unet.")
        change = np.array(delta(lora.modules["unet"][path])).ravel()
        error = (np.array(weight_of(layers[path])) - np.array(weight_of(exact[path]))).ravel()
        assert loss == pytest.approx(np.linalg.norm(error) / np.linalg.norm(change), rel=1e-2)
        assert 0 < loss < most


def test_a_lora_in_16_bits_beside_a_model_in_16_bits_stays_in_16_bits(sd1):
    components, lora = sd1
    unet = components["unet"]
    unet.set_dtype(mx.bfloat16)
    attach(components, lora, name="a")
    inputs = {k: mx.array(v) for k, v in inputs_of(UNETS["sd1"]).items()}
    assert unet(**inputs).dtype == mx.bfloat16
    for layer in adapted(unet).values():
        x = mx.zeros((1, 8, 8, layer.weight.shape[-1]), mx.bfloat16)
        assert layer(x).dtype == mx.bfloat16


def test_fused_weights_keep_their_type(sd1):
    components, lora = sd1
    components["unet"].set_dtype(mx.float16)
    fuse(components, [(lora, 0.1)])
    parameters = tree_flatten(components["unet"].parameters())
    assert {a.dtype for _, a in parameters} == {mx.float16}


def test_a_sum_too_large_for_the_weights_type_is_an_error(sd1):
    components, lora = sd1
    components["unet"].set_dtype(mx.float16)
    with pytest.raises(AdapterError, match=r"unet\..* is not finite in mlx.core.float16"):
        fuse(components, [(lora, 1e7)])


def test_a_bias_goes_to_a_layer_that_has_none():
    components = components_of("sd1")
    path = next(p for p in layers_of(components)["unet"] if p.endswith("attn1.to_q"))
    layer = adaptable(components["unet"])[path]
    assert "bias" not in layer
    out, into = layer.weight.shape
    update = Update(
        factors=Full(diff=mx.zeros((out, into))), bias=mx.arange(out).astype(mx.float32)
    )
    lora = LoraFile(modules={"unet": {path: update}}, metadata={}, format="kohya", name="b")
    fuse(components, [(lora, 2.0)])
    assert np.array_equal(np.array(layer.bias), 2.0 * np.arange(out))
