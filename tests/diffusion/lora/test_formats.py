"""Every program's file is read to the same LoRA, and one that does not fit says why."""

import json

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.lora.apply import attach, fuse
from macai.diffusion.lora.formats import read_lora
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.lora.updates import LowRank, delta
from macai.errors import AdapterError
from tests.diffusion.lora.lora_cases import (
    GOLDENS,
    SPELLINGS,
    answers_of,
    components_of,
    full_size,
    layers_of_kind,
    pair_file,
    pairs_of,
    spelled,
    worst,
    write,
)

LEAST = 80  # dB
FORMATS = {"peft-model": "peft", "comfy": "diffusers"}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "diffusion_lora.npz") as arrays:
        return dict(arrays)


def flat(lora):
    return {(c, p): u for c, updates in lora.modules.items() for p, u in updates.items()}


def equal(update, pair, scale=1.0):
    return (
        isinstance(update.factors, LowRank)
        and mx.array_equal(update.factors.down, pair["down"])
        and mx.array_equal(update.factors.up, pair["up"])
        and update.scale == scale
    )


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_file_of_diffusers_answers_what_diffusers_answered(kind, golden):
    components = components_of(kind)
    wanted = {n: golden[f"{kind}/{n}"] for n in components}
    lora = read_lora(GOLDENS / f"diffusion_lora_{kind}.safetensors", layers_of(components))
    assert not lora.unmatched
    base = answers_of(components, kind)
    assert worst(base, wanted) < 30
    attach(components, lora, name="golden")
    assert worst(answers_of(components, kind), wanted) > LEAST
    fused = components_of(kind)
    assert fuse(fused, [(lora, 1.0)]).fused == sum(lora.matched.values())
    assert worst(answers_of(fused, kind), wanted) > LEAST


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_every_spelling_is_read_to_the_same_updates(kind, spelling, layers, tmp_path):
    old = spelling == "diffusers-old"
    pairs = pairs_of(layers[kind], targets="attention" if old else "conv")
    file = write(tmp_path / "lora.safetensors", spelled(pairs, spelling, layers[kind]))
    lora = read_lora(file, layers[kind])
    assert lora.unmatched == ()
    assert lora.format == FORMATS.get(spelling, spelling)
    found = flat(lora)
    assert {f"{c}/{p}" for c, p in found} == set(pairs)
    assert all(equal(u, pairs[f"{c}/{p}"]) for (c, p), u in found.items())


@pytest.mark.parametrize(("kind", "count"), [("sd1", 192), ("sd2", 192), ("sdxl", 722)])
def test_a_full_size_file_of_kohyas_names_matches_as_many_layers_as_it_has(kind, count, tmp_path):
    layers = full_size(kind)
    spelling = "kohya-sgm" if kind == "sdxl" else "kohya"
    thin = {c: {p: (1, *s[1:]) for p, s in shapes.items()} for c, shapes in layers.items()}
    tensors = spelled(pairs_of(thin, rank=1), spelling, layers)
    lora = read_lora(write(tmp_path / "lora.safetensors", tensors), thin)
    assert lora.matched["unet"] == count
    assert lora.matched["text_encoder"] == (138 if kind == "sd2" else 72)
    assert lora.matched.get("text_encoder_2") == (192 if kind == "sdxl" else None)
    assert lora.unmatched == ()


def scales(lora):
    return {f"{c}/{p}": u.scale for (c, p), u in flat(lora).items()}


def test_alpha_in_the_file_counts_and_without_one_it_is_the_rank(layers, tmp_path):
    file, pairs = pair_file(layers["sd1"], tmp_path, "kohya")
    assert set(scales(read_lora(file, layers["sd1"])).values()) == {1.0}
    file, pairs = pair_file(layers["sd1"], tmp_path, "kohya", alpha=6.0)
    assert scales(read_lora(file, layers["sd1"])) == dict.fromkeys(pairs, 2.0)
    file, _ = pair_file(layers["sd1"], tmp_path, "kohya", alpha=6)  # int32: of old scripts
    assert set(scales(read_lora(file, layers["sd1"])).values()) == {2.0}


METADATA = {
    "unet.r": 3,
    "unet.lora_alpha": 6,
    "unet.alpha_pattern": {"conv_in": 12},
    "text_encoder.r": 3,
    "text_encoder.lora_alpha": 1.5,
}
ATTN2 = "unet/mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
FC1 = "text_encoder/text_model.encoder.layers.0.mlp.fc1"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, {ATTN2: 2.0, "unet/conv_in": 4.0, FC1: 0.5}),
        ({"unet.use_rslora": True}, {ATTN2: 6 / 3**0.5, "unet/conv_in": 12 / 3**0.5, FC1: 0.5}),
        ({"unet.alpha_pattern": {"^conv_in": 9}}, {ATTN2: 2.0, "unet/conv_in": 3.0, FC1: 0.5}),
        ({"unet.alpha_pattern": {"v_in": 9}}, {ATTN2: 2.0, "unet/conv_in": 2.0, FC1: 0.5}),
        ({"unet.alpha_pattern": {"^attn2.to_k": 9}}, {ATTN2: 2.0, "unet/conv_in": 2.0, FC1: 0.5}),
        ({"unet.alpha_pattern": {"attn2.to_k": 9}}, {ATTN2: 3.0, "unet/conv_in": 2.0, FC1: 0.5}),
        (
            {"text_encoder.alpha_pattern": {"^encoder.layers.0.mlp.fc1": 3}},
            {ATTN2: 2.0, "unet/conv_in": 4.0, FC1: 1.0},
        ),
    ],
)
def test_diffusers_alphas_are_in_the_metadata(change, wanted, layers, tmp_path):
    metadata = {"lora_adapter_metadata": METADATA | change}
    file, _ = pair_file(layers["sd1"], tmp_path, "diffusers", **metadata)
    assert scales(read_lora(file, layers["sd1"])) == wanted


def test_a_component_that_the_metadata_leaves_out_has_the_scale_1(layers, tmp_path):
    metadata = {k: v for k, v in METADATA.items() if k.startswith("unet")}
    file, _ = pair_file(layers["sd1"], tmp_path, "peft", lora_adapter_metadata=metadata)
    assert scales(read_lora(file, layers["sd1"]))[FC1] == 1.0


def test_pefts_alpha_is_in_the_file_beside_it(layers, tmp_path):
    file, pairs = pair_file(layers["sd1"], tmp_path, "peft-model", "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 12}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    for path in (file, tmp_path):
        assert scales(read_lora(path, layers["sd1"])) == dict.fromkeys(pairs, 4.0)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "no LoRA configuration .JSONDecodeError"),
        ("[" * 100_000, "no LoRA configuration .RecursionError"),
        ("[]", "not a JSON object"),
        ({"unet.r": 3}, "no LoRA configuration .KeyError"),
        (METADATA | {"unet.lora_alpha": "x"}, "no LoRA configuration .ValueError"),
        (METADATA | {"unet.lora_alpha": [1]}, "no LoRA configuration .TypeError"),
        (METADATA | {"unet.alpha_pattern": [1]}, "no LoRA configuration .AttributeError"),
        (METADATA | {"unet.r": 1e400}, "no LoRA configuration .OverflowError"),
        (METADATA | {"unet.r": 0}, "r = 0: not supported"),
        (METADATA | {"unet.lora_alpha": 1e400}, "lora_alpha = inf: not supported"),
        (METADATA | {"unet.alpha_pattern": {"(a+)+$": 1}}, "regular expression"),
        (METADATA | {"unet.use_qalora": True}, "use_qalora: not supported"),
    ],
)
def test_metadata_that_is_no_configuration_is_refused(metadata, message, layers, tmp_path):
    file, _ = pair_file(layers["sd1"], tmp_path, "peft", lora_adapter_metadata=metadata)
    with pytest.raises(AdapterError, match=message):
        read_lora(file, layers["sd1"])


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_a_file_in_16_bits_is_read(dtype, layers, tmp_path):
    pairs = pairs_of(layers["sd1"])
    tensors = {n: a.astype(dtype) for n, a in spelled(pairs, "kohya", layers["sd1"]).items()}
    lora = read_lora(write(tmp_path / "lora.safetensors", tensors), layers["sd1"])
    key, update = next(iter(flat(lora).items()))
    pair = pairs["/".join(key)]
    wanted = pair["up"].astype(dtype).astype(mx.float32).reshape(-1, 3) @ pair["down"].astype(
        dtype
    ).astype(mx.float32).reshape(3, -1)
    assert np.allclose(np.array(delta(update)).ravel(), np.array(wanted).ravel(), atol=1e-5)


def test_what_has_no_place_is_counted_with_its_reason(layers, tmp_path):
    file, pairs = pair_file(layers["sd1"], tmp_path, "kohya")
    tensors = dict(mx.load(str(file)))
    te2 = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    more = {
        f"{te2}.lora_down.weight": mx.zeros((3, 4)),
        f"{te2}.lora_up.weight": mx.zeros((4, 3)),
        "lora_unet_nothing.lora_down.weight": mx.zeros((3, 4)),
        "lora_unet_nothing.lora_up.weight": mx.zeros((4, 3)),
        "lora_unet_conv_out.lora_down.weight": mx.zeros((3, 99, 3, 3)),
        "lora_unet_conv_out.lora_up.weight": mx.zeros((4, 3, 1, 1)),
        "lora_unet_conv_norm_out.diff": mx.zeros((16,)),
        "lora_unet_time_embedding_linear_1.diff_b": mx.zeros((64,)),
        "bundle_emb.word.string_to_param.*": mx.zeros((1, 64)),
    }
    lora = read_lora(write(file, tensors | more), layers["sd1"])
    assert sum(lora.matched.values()) == len(pairs)
    assert {u.name: u.reason for u in lora.unmatched} == {
        te2: "the model has no text_encoder_2",
        "lora_unet_nothing": "the model has no such layer",
        "lora_unet_conv_out": "for a weight of [4, 99, 3, 3], the model's is [4, 16, 3, 3]",
        "lora_unet_conv_norm_out": "the model has no such layer",
        "lora_unet_time_embedding_linear_1": "a bias without its weight",
        "bundle_emb.word.string_to_param.*": "not a LoRA's tensor",
    }
    summary = lora.summary()
    assert summary.startswith(
        "lora.safetensors: kohya, 2 of unet, 1 of text_encoder matched; 6 not"
    )
    assert "the model has no such layer (2)" in summary


def test_nothing_that_matches_is_an_error(layers, tmp_path):
    tensors = {
        "lora_unet_a.lora_down.weight": mx.zeros((3, 4)),
        "lora_unet_a.lora_up.weight": mx.zeros((4, 3)),
        "whatever": mx.zeros((4, 3)),
    }
    file = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(
        AdapterError, match=r"0 of 2 layers have a place in the model: .*such layer"
    ):
        read_lora(file, layers["sd1"])


@pytest.mark.parametrize(
    "name", ["transformer.blocks.0.attn.to_q.lora_A.weight", "lora_unet_double_blocks_0_x.alpha"]
)
def test_a_lora_for_a_model_without_unet_is_called_that(name, layers, tmp_path):
    parent = name.removesuffix(".alpha").removesuffix(".lora_A.weight")
    tensors = {
        f"{parent}.lora_A.weight": mx.zeros((3, 4)),
        f"{parent}.lora_B.weight": mx.zeros((4, 3)),
    }
    with pytest.raises(AdapterError) as error:
        read_lora(write(tmp_path / "lora.safetensors", tensors), layers["sd1"])
    assert "without U-Net" in error.value.hint


SIZES = [("sd1", "Stable Diffusion 1", 768), ("sd2", "Stable Diffusion 2", 1024)]
SIZES += [("sdxl", "Stable Diffusion XL", 2048), ("sdxl-refiner", "the SDXL refiner", 1280)]


@pytest.mark.parametrize(
    ("kind", "spelling"),
    [(kind, "kohya") for kind, _, _ in SIZES]
    + [("sd1", other) for other in ("kohya-sgm", "diffusers", "diffusers-old", "peft")],
)
def test_a_lora_for_another_version_says_for_which(kind, spelling, tmp_path):
    layers = full_size(kind)
    called, width = next((name, wide) for k, name, wide in SIZES if k == kind)
    attention = {p: (1, *s[1:]) for p, s in layers["unet"].items() if ".attn2.to_" in p}
    tensors = spelled(pairs_of({"unet": attention}, rank=1, targets="attention"), spelling, layers)
    file = write(tmp_path / "lora.safetensors", tensors)
    for other, name, wide in SIZES:
        if other != kind:
            with pytest.raises(
                AdapterError, match=f"made for {called}, and the model is {name}$"
            ) as e:
                read_lora(file, full_size(other))
            assert e.value.hint.startswith(
                f"its cross-attention is {width} wide, the model's {wide}"
            )


def test_a_lora_for_another_model_of_no_known_width_says_so(layers, tmp_path):
    pairs = pairs_of({"unet": layers["sd1"]["unet"]})
    file = write(tmp_path / "lora.safetensors", spelled(pairs, "kohya", layers["sd1"]))
    with pytest.raises(AdapterError, match=r"cross-attention width of 20, .*width of 24"):
        read_lora(file, layers["sd2"])


def test_one_layer_under_two_names_is_an_error(layers, tmp_path):
    file, _ = pair_file(layers["sd1"], tmp_path, "kohya")
    tensors = dict(mx.load(str(file)))
    more = {n.replace("lora_te_", "lora_te1_"): a for n, a in tensors.items() if "lora_te_" in n}
    with pytest.raises(AdapterError, match="are the same layer of the model"):
        read_lora(write(file, tensors | more), layers["sd1"])


def test_one_tensor_under_two_names_is_an_error(layers, tmp_path):
    file, _ = pair_file(layers["sd1"], tmp_path, "peft")
    tensors = dict(mx.load(str(file)))
    more = {n.replace("lora_A", "lora_A.x"): a for n, a in tensors.items() if "lora_A" in n}
    with pytest.raises(AdapterError, match="are the same part of the same layer"):
        read_lora(write(file, tensors | more), layers["sd1"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("lora_unet_conv_in.lora_up.weight"), "lora_unet_conv_in: up is missing"),
        (
            lambda t: t.update({"lora_unet_conv_in.lora_up.weight": mx.zeros((16, 2, 1, 1))}),
            "do not go together",
        ),
        (
            lambda t: t.update(
                {"lora_unet_conv_in.lora_up.weight": mx.full((16, 3, 1, 1), mx.nan)}
            ),
            "lora_unet_conv_in.lora_up.weight has numbers that are not finite",
        ),
        (
            lambda t: t.update({"lora_unet_conv_in.alpha": mx.array(float("inf"))}),
            "not finite",
        ),
        (
            lambda t: t.update({"lora_unet_conv_in.lora_up.weight": mx.zeros((16, 3), mx.int32)}),
            "up is mlx.core.int32",
        ),
    ],
)
def test_a_broken_layer_is_named(damage, message, layers, tmp_path):
    file, _ = pair_file(layers["sd1"], tmp_path, "kohya")
    tensors = dict(mx.load(str(file)))
    damage(tensors)
    with pytest.raises(AdapterError, match=message):
        read_lora(write(file, tensors), layers["sd1"])


def test_the_layers_of_a_model_that_is_not_loaded_are_those_of_the_loaded_one():
    assert layers_of_kind("xl") == layers_of(components_of("xl"))
