"""U-Nets and ControlNets answer what diffusers' answered (golden), and refuse what they are not."""

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.models.controlnet import ControlNetConfig
from macai.diffusion.models.embeddings import Timesteps
from macai.diffusion.models.resnet import upsample_nearest
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig
from macai.errors import ModelError
from macai.models.arrays import named_arrays
from tests.diffusion.models.text_vae_cases import psnr, with_random_weights
from tests.diffusion.models.unet_cases import (
    CONTROLNET,
    KINDS,
    SD1,
    SD2,
    XL,
    inputs_of,
    model_of,
    outputs_of,
)

GOLDEN = Path(__file__).parents[2] / "goldens" / "diffusion_unet.npz"


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_of_each_kind_answers_what_diffusers_answered(kind):
    outputs = outputs_of(with_random_weights(model_of(KINDS[kind])), inputs_of(KINDS[kind]))
    wanted = {n: a for n, a in golden().items() if n.startswith(f"{kind}/")}
    assert len(outputs) == len(wanted)
    for i, output in enumerate(outputs):
        assert psnr(output, wanted[f"{kind}/{i}"]) > 100


def test_one_time_for_all_rows_is_that_time_in_each_row():
    model, inputs = with_random_weights(model_of(KINDS["sd1"])), inputs_of(KINDS["sd1"])
    (each,) = outputs_of(model, inputs | {"timestep": np.array([501, 501])})
    for one in (501, 501.0, np.array(501)):
        (same,) = outputs_of(model, inputs | {"timestep": one})
        assert np.array_equal(same, each)


def test_a_half_precision_model_answers_in_its_type_whatever_the_inputs_types_are():
    config = KINDS["xl"] | {"transformer_layers_per_block": 1}
    model = with_random_weights(model_of(config))
    inputs = inputs_of(config, size=(4, 4), batch=1)
    (exact,) = outputs_of(model, inputs)
    for dtype, least in ((mx.float16, 45), (mx.bfloat16, 28)):
        model.set_dtype(dtype)
        arrays = {k: mx.array(v) for k, v in inputs.items()}
        output = model(**arrays)
        assert output.dtype == dtype
        assert psnr(output.astype(mx.float32), exact) > least


def test_time_is_embedded_in_float32_in_a_half_precision_model():
    model = model_of(KINDS["sd1"])
    model.set_dtype(mx.float16)
    seen = []
    project = model.time_proj
    model.time_proj = lambda t: seen.append(project(t)) or seen[-1]
    times = np.array([981.37, 3], np.float32)  # float16 has no 981.37
    model.time_embed(mx.array(times), 2, mx.float16, None)
    angles = times.astype(np.float64)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    assert seen[0].dtype == mx.float32
    exact = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    assert np.abs(np.array(seen[0]) - exact).max() < 1e-4


def test_an_embedding_of_odd_width_ends_in_zero():
    embedded = Timesteps(7, flip_sin_to_cos=False, downscale_freq_shift=1)(mx.array([2.5]))
    angles = 2.5 * 10000.0 ** (-np.arange(3) / 2)
    exact = np.concatenate([np.sin(angles), np.cos(angles), [0]])
    assert np.abs(np.array(embedded)[0] - exact).max() < 1e-6


def test_nearest_neighbours_of_any_size_are_those_of_floor():
    x = mx.arange(15).reshape(1, 3, 5, 1)
    for size in ((6, 10), (5, 9), (6, 9), (5, 10), (7, 4)):
        rows, columns = (np.arange(n) * m // n for n, m in zip(size, (3, 5), strict=True))
        wanted = np.arange(15).reshape(3, 5)[rows][:, columns]
        assert np.array_equal(np.array(upsample_nearest(x, size))[0, ..., 0], wanted)
    assert upsample_nearest(x).shape == (1, 6, 10, 1)


def test_residuals_of_a_controlnet_change_the_answer_and_none_is_left_over():
    config, control = KINDS["sd1"] | {"layers_per_block": 1}, KINDS["controlnet"]
    unet, net = (with_random_weights(model_of(c)) for c in (config, control))
    inputs = inputs_of(control)
    down, middle = net(**{k: mx.array(v) for k, v in inputs.items()}, conditioning_scale=0.5)
    twice = net(**{k: mx.array(v) for k, v in inputs.items()}, conditioning_scale=1.0)
    assert mx.allclose(middle * 2, twice[1], rtol=1e-6).item()
    own = {k: v for k, v in inputs.items() if k != "controlnet_cond"}
    (plain,) = outputs_of(unet, own)
    (nothing,) = outputs_of(
        unet,
        own,
        down_block_additional_residuals=[one * 0 for one in down],
        mid_block_additional_residual=middle * 0,
    )
    assert np.array_equal(plain, nothing)
    for more in (
        {"down_block_additional_residuals": down},
        {"mid_block_additional_residual": middle},
    ):
        (changed,) = outputs_of(unet, own, **more)
        assert psnr(changed, plain) < 60
    with pytest.raises(ValueError, match="shorter"):
        outputs_of(unet, own, down_block_additional_residuals=down[:-1])


@pytest.mark.parametrize(
    ("kind", "missing", "message"),
    [
        ("xl", "text_embeds", "text_embeds and time_ids"),
        ("xl", "time_ids", "text_embeds and time_ids"),
        ("unclip", "class_labels", "class_labels"),
    ],
)
def test_an_input_the_model_needs_is_asked_for(kind, missing, message):
    inputs = inputs_of(KINDS[kind])
    del inputs[missing]
    with pytest.raises(ValueError, match=message):
        outputs_of(model_of(KINDS[kind]), inputs)


def test_a_guidance_embedding_is_only_for_models_that_were_made_for_one():
    inputs = inputs_of(KINDS["lcm"])
    with pytest.raises(ValueError, match="time_cond_proj_dim"):
        outputs_of(model_of(KINDS["sd1"]), inputs)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("down_block_types", ["SimpleCrossAttnDownBlock2D", *SD1["down_block_types"][1:]]),
        ("up_block_types", ["AttnUpBlock2D", *SD1["up_block_types"][1:]]),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("act_fn", "tanh"),
        ("addition_embed_type", "image"),
        ("encoder_hid_dim_type", "image_proj"),
        ("class_embed_type", "onehot"),
        ("time_embedding_type", "fourier"),
        ("time_embedding_act_fn", "sin"),
        ("timestep_post_act", "sin"),
        ("resnet_time_scale_shift", "ada_group"),
        ("attention_type", "gated"),
        ("dual_cross_attention", True),
        ("num_attention_heads", 8),
    ],
)
def test_a_unet_of_another_kind_is_refused_with_the_key_and_its_value(key, value):
    with pytest.raises(ModelError) as error:
        UNet2DConditionConfig.from_dict(SD1 | {key: value})
    assert key in error.value.message
    first = value[0] if isinstance(value, list) else value
    assert repr(first) in error.value.message
    assert "supported" in error.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": []}, "block_out_channels is empty"),
        ({"norm_num_groups": None}, "norm_num_groups is None"),
        ({"norm_num_groups": 48}, "norm_num_groups 48 does not divide"),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim has 2 entries for 4"),
        ({"attention_head_dim": 0}, "attention_head_dim is 0"),
        ({"attention_head_dim": 640}, "more heads"),
        ({"cross_attention_dim": "768"}, "cross_attention_dim is '768'"),
        ({"layers_per_block": 2.0}, "layers_per_block is 2.0"),
        ({"in_channels": True}, "in_channels is True"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim is missing; projection"),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim is missing"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim is missing"),
        ({"transformer_layers_per_block": [[1, 1], 1, 1, 1]}, "reverse_transformer_layers"),
        (
            {
                "transformer_layers_per_block": [[1], 1, 1, 1],
                "reverse_transformer_layers_per_block": [1, 1, 1, [1, 1]],
            },
            r"transformer_layers_per_block has \[1\] for 2 layers; reverse_.* has \[1, 1\] for 3",
        ),
    ],
)
def test_a_config_whose_values_do_not_go_together_is_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        UNet2DConditionConfig.from_dict(SD1 | changes)


def test_a_controlnet_needs_a_middle_and_a_known_order_of_colours():
    for changes in ({"mid_block_type": None}, {"controlnet_conditioning_channel_order": "grb"}):
        with pytest.raises(ModelError, match=next(iter(changes))):
            ControlNetConfig.from_dict(CONTROLNET | changes)


def test_keys_that_change_nothing_are_ignored():
    ignored = {
        "_diffusers_version": "0.6.0",
        "cross_attention_norm": "group_norm",
        "resnet_out_scale_factor": 2.0,
        "mid_block_only_cross_attention": True,
        "somebodys_note": [1, {"a": None}],
    }
    assert UNet2DConditionConfig.from_dict(SD1 | ignored) == UNet2DConditionConfig.from_dict(SD1)


def test_attention_head_dim_is_the_number_of_heads():
    config = UNet2DConditionConfig.from_dict(SD2)
    assert config.heads == (5, 10, 20, 20)
    assert UNet2DConditionConfig.from_dict(SD1).heads == (8, 8, 8, 8)
    model = model_of(KINDS["sd2"])
    attention = model.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    assert attention.to_q(mx.zeros((1, 1, 32))).shape == (1, 1, 32)
    assert attention._split(mx.zeros((1, 1, 32))).shape == (1, 4, 1, 8)


def test_depths_of_an_xl_unet_are_those_of_its_config_read_from_below_on_the_way_up():
    config = UNet2DConditionConfig.from_dict(XL)
    assert config.transformer_layers == ((1, 1), (2, 2), (10, 10))
    assert config.up_transformer_layers == ((10, 10, 10), (2, 2, 2), (1, 1, 1))


def test_attention_that_overflows_float16_is_computed_in_float32_where_the_config_says_so():
    config = KINDS["sd2"]
    plain, upcast = (
        with_random_weights(model_of(config | {"upcast_attention": on})) for on in (False, True)
    )
    finite = []
    for model in (plain, upcast):
        block = model.down_blocks[0].attentions[0].transformer_blocks[0]
        block.attn1.to_q.weight = block.attn1.to_q.weight * 300
        block.attn1.to_k.weight = block.attn1.to_k.weight * 300
        model.set_dtype(mx.float16)
        x = mx.array(np.random.default_rng(0).standard_normal((1, 16, 16)), mx.float16)
        out = block.attn1(x)
        assert out.dtype == mx.float16
        finite.append(mx.isfinite(out).all().item())
    assert finite[1]
    if mx.default_device() == mx.cpu:  # the fused kernel of a Mac is exact without it
        assert not finite[0]


def test_all_parameters_have_gradients():
    config = KINDS["xl"]
    model, inputs = with_random_weights(model_of(config)), inputs_of(config)
    arrays = {k: mx.array(v) for k, v in inputs.items()}

    def loss(parameters):
        model.update(parameters)
        return (model(**arrays) ** 2).mean()

    gradients = named_arrays(mx.grad(loss)(model.trainable_parameters()))
    mx.eval(gradients)
    assert gradients.keys() == named_arrays(model.parameters()).keys()
    assert [n for n, g in gradients.items() if not mx.abs(g).max().item() > 0] == []
