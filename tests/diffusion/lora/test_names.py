"""Every layer has its name in every program, and counts are those that programs train."""

import re

import pytest

from macai.diffusion.lora.names import (
    Layer,
    NameTable,
    component_of,
    kohya_name,
    sgm_paths,
    target_paths,
)
from macai.errors import AdapterError
from tests.diffusion.lora.lora_cases import full_size, layers_of_kind, original_names

FULL_SIZE = ["sd1", "sd2", "sdxl", "sdxl-refiner"]
DEEP = "down_blocks.1.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize(
    ("kind", "component", "targets", "count"),
    [
        ("sd1", "unet", "attention", 128),
        ("sd1", "unet", "linear", 192),
        ("sd2", "unet", "attention", 128),
        ("sd2", "unet", "linear", 192),
        ("sdxl", "unet", "attention", 560),
        ("sdxl", "unet", "linear", 722),
        ("sd1", "text_encoder", "attention", 48),
        ("sd1", "text_encoder", "linear", 72),
        ("sdxl", "text_encoder", "linear", 72),
        ("sdxl", "text_encoder_2", "linear", 192),
        # All but conv_in, conv_out and the embeddings of time (and of size).
        ("sd1", "unet", "conv", 282 - 4),
        ("sdxl", "unet", "conv", 794 - 6),
    ],
)
def test_as_many_layers_are_targets_as_in_diffusers_and_kohyas_scripts(
    kind, component, targets, count
):
    layers = full_size(kind)[component]
    paths = target_paths(layers, targets)
    assert len(paths) == len(set(paths)) == count
    assert set(paths) <= set(layers)


@pytest.mark.parametrize("kind", FULL_SIZE)
def test_the_original_implementations_names_are_those_of_its_checkpoints(kind):
    assert sgm_paths(full_size(kind)["unet"]) == original_names(kind)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_the_layers_of_a_model_have_torchs_shapes(kind):
    layers = layers_of_kind(kind)
    assert layers["unet"]["conv_in"] == (16, 4, 3, 3)
    assert layers["text_encoder"]["text_model.encoder.layers.0.mlp.fc1"] == (96, 64)
    assert ("text_projection" in layers.get("text_encoder_2", {})) == (kind == "xl")
    assert not any("norm" in path for shapes in layers.values() for path in shapes)


@pytest.mark.parametrize(
    ("kind", "name", "component", "path"),
    [
        ("sd1", f"lora_unet_{DEEP.replace('.', '_')}_attn1_to_q", "unet", f"{DEEP}.attn1.to_q"),
        (
            "sd1",
            f"lora_unet_{DEEP.replace('.', '_')}_ff_net_0_proj",
            "unet",
            f"{DEEP}.ff.net.0.proj",
        ),
        ("sd1", "lora_unet_mid_block_resnets_0_conv1", "unet", "mid_block.resnets.0.conv1"),
        ("sd1", f"unet.{DEEP}.attn2.to_out.0", "unet", f"{DEEP}.attn2.to_out.0"),
        ("sd1", f"unet.{DEEP}.attn2.processor.to_out", "unet", f"{DEEP}.attn2.to_out.0"),
        ("sd1", f"{DEEP}.attn2.processor.to_k", "unet", f"{DEEP}.attn2.to_k"),
        ("sd1", f"base_model.model.{DEEP}.attn2.to_k", "unet", f"{DEEP}.attn2.to_k"),
        ("sd1", f"base_model.model.unet.{DEEP}.attn2.to_k", "unet", f"{DEEP}.attn2.to_k"),
        ("sd1", "diffusion_model.middle_block.1.proj_in", "unet", "mid_block.attentions.0.proj_in"),
        ("sdxl", "lora_unet_middle_block_1_proj_in", "unet", "mid_block.attentions.0.proj_in"),
        (
            "sdxl",
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "unet",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        (
            "sdxl",
            "lora_unet_output_blocks_0_1_transformer_blocks_9_ff_net_2",
            "unet",
            "up_blocks.0.attentions.0.transformer_blocks.9.ff.net.2",
        ),
        ("sdxl", "lora_unet_output_blocks_5_2_conv", "unet", "up_blocks.1.upsamplers.0.conv"),
        ("sdxl", "lora_unet_input_blocks_3_0_op", "unet", "down_blocks.0.downsamplers.0.conv"),
        ("sdxl", "lora_unet_label_emb_0_2", "unet", "add_embedding.linear_2"),
        ("sdxl", "lora_unet_time_embed_0", "unet", "time_embedding.linear_1"),
        ("sdxl", "lora_unet_out_2", "unet", "conv_out"),
        ("sdxl", "lora_te2_text_projection", "text_encoder_2", "text_projection"),
    ],
)
def test_a_name_in_a_file_is_of_this_layer(kind, name, component, path):
    assert NameTable(full_size(kind)).find(name) == Layer(component, path)


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_text_model_encoder_layers_3_mlp_fc1",
        "lora_te1_text_model_encoder_layers_3_mlp_fc1",
        "lora_te_encoder_layers_3_mlp_fc1",
        "text_encoder.text_model.encoder.layers.3.mlp.fc1",
        "text_encoder.encoder.layers.3.mlp.fc1",
        "base_model.model.text_model.encoder.layers.3.mlp.fc1",
        "encoder.layers.3.mlp.fc1",
    ],
)
def test_a_text_encoders_layer_is_found_with_and_without_text_model(name):
    wanted = Layer("text_encoder", "text_model.encoder.layers.3.mlp.fc1")
    assert NameTable(full_size("sd1")).find(name) == wanted


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("sd1", "lora_te2_text_model_encoder_layers_3_mlp_fc1", "the model has no text_encoder_2"),
        ("sd1", "text_encoder_2.encoder.layers.3.mlp.fc1", "the model has no text_encoder_2"),
        ("sdxl-refiner", "lora_te1_text_model_encoder_layers_3_mlp_fc1", "no text_encoder"),
        ("sd1", "lora_unet_down_blocks_7_resnets_0_conv1", "no such layer"),
        ("sd1", "lora_unet_down_blocks_1_resnets_0_norm1", "no such layer"),
        ("sdxl", "encoder.layers.3.mlp.fc1", "may be of text_encoder or text_encoder_2"),
    ],
)
def test_a_name_without_a_layer_says_why(kind, name, reason):
    assert re.search(reason + "$", NameTable(full_size(kind)).find(name))


@pytest.mark.parametrize("kind", FULL_SIZE)
def test_every_layer_is_found_under_kohyas_names(kind):
    layers = full_size(kind)
    table, sgm = NameTable(layers), original_names(kind)
    names = set()
    for component, shapes in layers.items():
        for path in shapes:
            layer = Layer(component, path)
            own = sgm[path] if component == "unet" else None
            for original in {None, own}:
                name = kohya_name(layer, sgm=original, several_text_encoders="xl" in kind)
                assert table.find(name) == layer
                assert component_of(name) == component
                names.add(name)
    assert len(names) >= sum(map(len, layers.values()))


def test_two_layers_of_one_name_are_an_error():
    layers = {"unet": {"block.a_b": (2, 2), "block.a.b": (2, 2)}}
    with pytest.raises(
        AdapterError, match=r"unet\.block\.a\.b and unet\.block\.a_b are both called"
    ):
        NameTable(layers)
