"""Weights go from torch's layout to MLX's and back without loss."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.diffusion.models.attention import Attention
from macai.diffusion.models.layout import to_mlx, to_torch
from macai.models.arrays import named_arrays
from tests.diffusion.models.text_vae_cases import random_weights, with_random_weights
from tests.diffusion.models.unet_cases import KINDS, inputs_of, model_of, outputs_of


def shapes_of(model):
    return {n: a.shape for n, a in to_torch(named_arrays(model.parameters())).items()}


def test_there_and_back_is_the_same_array_for_every_name():
    for kind in ("sd1", "sd2", "controlnet"):
        model = model_of(KINDS[kind])
        weights = random_weights(shapes_of(model))
        there = to_mlx(weights, model)
        assert {n: a.shape for n, a in there.items()} == {
            n: a.shape for n, a in named_arrays(model.parameters()).items()
        }
        back = to_torch(there)
        assert back.keys() == weights.keys()
        assert all(np.array_equal(np.array(back[n]), weights[n]) for n in weights)


def test_a_convolution_is_that_of_torch_written_out():
    conv = nn.Conv2d(2, 3, 3)
    weights = {"weight": np.arange(54.0, dtype=np.float32).reshape(3, 2, 3, 3)}
    there = to_mlx(weights, conv)["weight"]
    assert all(
        there[o, y, x, i].item() == weights["weight"][o, i, y, x]
        for o, i, y, x in np.ndindex(3, 2, 3, 3)
    )


def test_arrays_of_mlx_keep_their_type():
    model = model_of(KINDS["sd1"])
    name = "conv_in.weight"
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        array = mx.random.normal((16, 4, 3, 3)).astype(dtype)
        assert to_mlx({name: array}, model)[name].dtype == dtype


def test_linear_and_convolutional_projections_stand_for_each_other():
    linear = KINDS["sd1"] | {"use_linear_projection": True}
    models = [model_of(KINDS["sd1"]), model_of(linear)]
    outputs = []
    for ours, theirs in (models, models[::-1]):
        weights = random_weights(shapes_of(theirs))
        assert {a.shape for n, a in weights.items() if n.endswith("proj_in.weight")} != {
            a.shape
            for n, a in random_weights(shapes_of(ours)).items()
            if n.endswith("proj_in.weight")
        }
        ours.load_weights(list(to_mlx(weights, ours).items()), strict=True)
        (output,) = outputs_of(ours, inputs_of(KINDS["sd1"]))
        outputs.append(output)
        (wanted,) = outputs_of(with_random_weights(theirs), inputs_of(KINDS["sd1"]))
        assert np.abs(output - wanted).max() < 1e-5


def test_old_names_of_the_vaes_attention_become_those_of_today():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attentions = [
                Attention(8, heads=1, dim_head=8, bias=True, norm_num_groups=4, eps=1e-6)
            ]

    old = {
        f"attentions.0.{name}.{kind}": np.full((8, 8) if kind == "weight" else (8,), i, np.float32)
        for i, name in enumerate(("query", "key", "value", "proj_attn"))
        for kind in ("weight", "bias")
    }
    current = to_mlx(old, Block())
    for i, name in enumerate(("to_q", "to_k", "to_v", "to_out.0")):
        for kind in ("weight", "bias"):
            assert (current[f"attentions.0.{name}.{kind}"] == i).all().item()
    as_convolutions = {
        n: a.reshape(8, 8, 1, 1) if n.endswith("weight") else a for n, a in old.items()
    }
    again = to_mlx(as_convolutions, Block())
    assert all(mx.array_equal(again[n], current[n]).item() for n in current)


def test_a_name_the_model_does_not_know_is_left_as_it_is():
    odd = {
        "nowhere.weight": np.zeros((2, 3, 4, 5), np.float32),
        "attentions.0.query.weight": np.zeros((2, 2), np.float32),
    }
    left = to_mlx(odd, model_of(KINDS["sd1"]))
    assert {n: a.shape for n, a in left.items()} == {n: a.shape for n, a in odd.items()}
