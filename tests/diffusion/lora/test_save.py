"""What is trained comes back from the files we write, under the names others read."""

import json

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.lora.apply import attach
from macai.diffusion.lora.formats import LoraFile, read_lora
from macai.diffusion.lora.layers import adapted, layers_of
from macai.diffusion.lora.names import target_paths
from macai.diffusion.lora.parts import make_update
from macai.diffusion.lora.save import save_diffusers, save_kohya
from macai.diffusion.lora.training import add_lora, trained_lora
from macai.diffusion.lora.updates import Update, delta
from macai.errors import AdapterError
from macai.models.arrays import load_arrays
from tests.diffusion.lora.lora_cases import (
    GOLDENS,
    answers_of,
    components_of,
    drawn,
    full_size,
    layers_of_kind,
    randomise,
    worst,
)

SAVE = {"diffusers": save_diffusers, "kohya": save_kohya}
FILE = "pytorch_lora_weights.safetensors"


def trained(kind="sd1", *, targets="conv", rank=3, alpha=4.0):
    """Return a tiny pipeline's models with a LoRA as training leaves it, and the LoRA."""
    components = components_of(kind)
    for name, model in components.items():
        paths = target_paths(layers_of(components)[name], targets)
        add_lora(model, paths, name="mine", rank=rank, alpha=alpha)
        randomise(model, name)
    return components, trained_lora(components, "mine")


def same(one, other):
    assert {c: set(u) for c, u in one.modules.items()} == {
        c: set(u) for c, u in other.modules.items()
    }
    for component, updates in one.modules.items():
        for path, update in updates.items():
            back = other.modules[component][path]
            assert mx.array_equal(update.factors.down, back.factors.down)
            assert mx.array_equal(update.factors.up, back.factors.up)
            assert back.scale == pytest.approx(update.scale, rel=1e-6)


@pytest.mark.parametrize("form", SAVE)
@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_a_written_lora_is_read_as_it_was(kind, form, tmp_path):
    components, lora = trained(kind)
    layers = layers_of(components)
    SAVE[form](tmp_path / FILE, lora, layers)
    back = read_lora(tmp_path / FILE, layers)
    assert back.unmatched == ()
    same(lora, back)
    fresh = components_of(kind)
    attach(fresh, back, name="back")
    assert worst(answers_of(fresh, kind), answers_of(components, kind)) > 120


@pytest.mark.parametrize("form", SAVE)
@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_read_lora_is_written_as_it_was(kind, form, tmp_path):
    layers = layers_of_kind(kind)
    lora = read_lora(GOLDENS / f"diffusion_lora_{kind}.safetensors", layers)
    assert len({u.scale for u in lora.modules["unet"].values()}) > 2
    SAVE[form](tmp_path / FILE, lora, layers)
    same(lora, read_lora(tmp_path / FILE, layers))


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_kohyas_names_are_the_original_ones_only_for_xl(kind, tmp_path):
    components, lora = trained(kind)
    save_kohya(tmp_path / "lora.safetensors", lora, layers_of(components))
    arrays, metadata = load_arrays(tmp_path / "lora.safetensors")
    xl = kind == "xl"
    assert ("lora_unet_middle_block_1_proj_in.lora_down.weight" in arrays) == xl
    assert ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight" in arrays) != xl
    fc1 = "text_model_encoder_layers_0_mlp_fc1"
    assert (f"lora_te1_{fc1}.alpha" in arrays) == (f"lora_te2_{fc1}.alpha" in arrays) == xl
    assert (f"lora_te_{fc1}.alpha" in arrays) != xl
    assert all(a.item() == 4.0 for n, a in arrays.items() if n.endswith(".alpha"))
    assert metadata == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "4",
    }


@pytest.mark.parametrize(
    ("kind", "version"), [("sd1", "sd_v1"), ("sd2", "sd_v2"), ("sdxl", "sdxl_base_v1-0")]
)
def test_kohyas_metadata_says_which_base_it_is_for(kind, version, tmp_path):
    layers = full_size(kind)
    path = "mid_block.attentions.0.proj_in"
    out, into, *ones = layers["unet"][path]
    parts = {"down": mx.zeros((1, into, *ones)), "up": mx.zeros((out, 1, *ones))}
    modules = {"unet": {path: make_update(parts)}}
    file = tmp_path / "lora.safetensors"
    save_kohya(file, LoraFile(modules=modules, metadata={}, format="peft"), layers)
    assert load_arrays(file)[1]["ss_base_model_version"] == version
    # The SDXL U-Net alone is named like SDXL too, without its text encoders.
    save_kohya(
        file, LoraFile(modules=modules, metadata={}, format="peft"), {"unet": layers["unet"]}
    )
    sgm = "lora_unet_middle_block_1_proj_in.alpha"
    assert (sgm in load_arrays(file)[0]) == (kind == "sdxl")


def test_diffusers_finds_ranks_alphas_and_targets_in_the_metadata(tmp_path):
    components = components_of("sd1")
    layers = layers_of(components)
    unet = components["unet"]
    add_lora(unet, target_paths(layers["unet"], "attention"), name="mine", rank=4, alpha=2)
    add_lora(unet, ["conv_in"], name="other", rank=2, alpha=8)
    text = ["text_model.encoder.layers.1.mlp.fc1"]
    add_lora(components["text_encoder"], text, name="mine", rank=3, alpha=1)
    text = ["text_model.encoder.layers.0.mlp.fc1", "text_model.encoder.layers.2.mlp.fc1"]
    add_lora(components["text_encoder"], text, name="other", rank=2, alpha=5)
    lora, other = trained_lora(components, "mine"), trained_lora(components, "other")
    for component, updates in other.modules.items():
        lora.modules[component] |= updates
    save_diffusers(tmp_path / FILE, lora, layers)
    arrays, metadata = load_arrays(tmp_path / FILE)
    assert metadata["format"] == "pt"
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["unet.r"], config["unet.lora_alpha"]) == (4, 2)
    assert (config["text_encoder.r"], config["text_encoder.lora_alpha"]) == (2, 5)
    assert config["unet.rank_pattern"] == {"conv_in": 2}
    assert config["unet.alpha_pattern"] == {"conv_in": 8}
    # Without "text_model.", which transformers 5 does not have: a tail fits older ones as well.
    assert config["text_encoder.rank_pattern"] == {"encoder.layers.1.mlp.fc1": 3}
    assert config["text_encoder.alpha_pattern"] == {"encoder.layers.1.mlp.fc1": 1}
    assert config["text_encoder.target_modules"] == ["fc1"]
    assert config["unet.peft_type"] == "LORA"
    assert "conv_in" in "".join(config["unet.target_modules"])
    attn = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert arrays[f"{attn}.lora_A.weight"].shape == (4, 32)
    assert arrays["unet.conv_in.lora_A.weight"].shape == (2, 4, 3, 3)
    assert arrays["unet.conv_in.lora_B.weight"].shape == (16, 2, 1, 1)
    assert "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_B.weight" in arrays


def test_a_target_of_few_layers_is_named_by_its_whole_path(tmp_path):
    components = components_of("sd1")
    path = "encoder.layers.1.mlp.fc1"
    add_lora(components["text_encoder"], [f"text_model.{path}"], name="mine", rank=3, alpha=1)
    save_diffusers(tmp_path / FILE, trained_lora(components, "mine"), layers_of(components))
    config = json.loads(load_arrays(tmp_path / FILE)[1]["lora_adapter_metadata"])
    assert config["text_encoder.target_modules"] == [path]


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        ("attention", ["to_k", "to_out.0", "to_q", "to_v"]),
        (
            "linear",
            ["net.2", "proj", "proj_in", "proj_out", "to_k", "to_out.0", "to_q", "to_v"],
        ),
    ],
)
def test_targets_are_the_ends_of_paths_where_these_say_all(targets, wanted, tmp_path):
    components, lora = trained(targets=targets)
    save_diffusers(tmp_path / FILE, lora, layers_of(components))
    config = json.loads(load_arrays(tmp_path / FILE)[1]["lora_adapter_metadata"])
    assert config["unet.target_modules"] == wanted


@pytest.mark.parametrize("form", SAVE)
def test_tensors_are_written_in_16_bits_and_alphas_are_not_rounded(form, tmp_path):
    components, lora = trained(alpha=1.0001)
    SAVE[form](tmp_path / FILE, lora, layers_of(components), dtype=mx.float16)
    arrays, _ = load_arrays(tmp_path / FILE)
    kinds = {a.dtype for n, a in arrays.items() if not n.endswith(".alpha")}
    assert kinds == {mx.float16}
    back = read_lora(tmp_path / FILE, layers_of(components))
    scales = {u.scale for updates in back.modules.values() for u in updates.values()}
    assert all(scale == pytest.approx(1.0001 / 3, rel=1e-6) for scale in scales)


def one_layer(parts, path="mid_block.attentions.0.transformer_blocks.0.attn1.to_q", **more):
    update = make_update({n: mx.array(a) for n, a in parts.items()})
    update = Update(
        factors=update.factors,
        magnitude=update.magnitude,
        bias=update.bias,
        **({"scale": 0.7} | more),
    )
    return LoraFile(modules={"unet": {path: update}}, metadata={}, format="kohya", name="one")


LOW = {"down": drawn("a", 2, 32), "up": drawn("b", 32, 2)}
A, B = (32, 2), (2, 32)
KINDS = {
    "DoRA of outputs": LOW | {"dora_scale": drawn("c", 32, 1)},
    "DoRA of inputs": LOW | {"dora_scale": drawn("c", 1, 32)},
    "bias": LOW | {"diff_b": drawn("c", 32)},
    "Hadamard": {
        f"hada_w{n}_{x}": drawn(n + x, *shape) for n in "12" for x, shape in (("a", A), ("b", B))
    },
    "Kronecker": {
        "lokr_w1": drawn("a", 4, 8),
        "lokr_w2_a": drawn("b", 8, 2),
        "lokr_w2_b": drawn("c", 2, 4),
    },
    "Kronecker of whole factors": {"lokr_w1": drawn("a", 4, 8), "lokr_w2": drawn("b", 8, 4)},
    "Full": {"diff": drawn("a", 32, 32)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kohyas_files_hold_every_kind_of_update(kind, tmp_path):
    layers = layers_of_kind("sd1")
    lora = one_layer(KINDS[kind])
    save_kohya(tmp_path / "lora.safetensors", lora, layers)
    back = read_lora(tmp_path / "lora.safetensors", layers)
    (update,), (again,) = (list(one.modules["unet"].values()) for one in (lora, back))
    weight = mx.array(drawn("w", 32, 32))
    ours, theirs = (np.array(delta(u, weight=weight)) for u in (update, again))
    assert np.abs(ours - theirs).max() < 1e-6 * np.abs(ours).max()
    assert (again.bias is None) == (update.bias is None)
    assert type(again.factors) is type(update.factors)


def test_a_tucker_update_comes_back_from_kohyas_file(tmp_path):
    layers = layers_of_kind("sd1")
    parts = {
        "down": drawn("a", 2, 32, 1, 1),
        "mid": drawn("b", 2, 2, 3, 3),
        "up": drawn("c", 32, 2, 1, 1),
    }
    lora = one_layer(parts, "mid_block.resnets.0.conv1")
    components = {"unet": components_of("sd1")["unet"]}
    attach(components, lora, name="tucker")
    (layer,) = adapted(components["unet"]).values()
    save_kohya(tmp_path / "lora.safetensors", trained_lora(components, "tucker"), layers)
    back = read_lora(tmp_path / "lora.safetensors", layers)
    (update,) = back.modules["unet"].values()
    wanted = lora.modules["unet"]["mid_block.resnets.0.conv1"]
    assert layer.branches[0].lora_mid.shape == (2, 3, 3, 2)
    assert np.allclose(np.array(delta(update)), np.array(delta(wanted)), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_files_hold_plain_updates_only(kind, tmp_path):
    word = kind.split()[0]
    with pytest.raises(AdapterError, match=f"a {word} update has no place in a diffusers file"):
        save_diffusers(tmp_path / FILE, one_layer(KINDS[kind]), layers_of_kind("sd1"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", SAVE)
def test_numbers_that_are_not_finite_are_not_written(form, tmp_path):
    layers = layers_of_kind("sd1")
    lora = one_layer(LOW | {"up": np.full((32, 2), np.nan, np.float32)})
    with pytest.raises(AdapterError, match=r"attn1.to_q.* is not finite in mlx.core.float32"):
        SAVE[form](tmp_path / FILE, lora, layers)
    lora = one_layer(LOW | {"up": np.full((32, 2), 1e5, np.float32)})
    with pytest.raises(AdapterError, match=r"is not finite in mlx.core.float16") as error:
        SAVE[form](tmp_path / FILE, lora, layers, dtype=mx.float16)
    assert error.value.hint == "write float32"
    assert not list(tmp_path.iterdir())
