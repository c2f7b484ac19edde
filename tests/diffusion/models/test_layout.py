"""Weights go from torch's layout to MLX's and back without loss."""

import mlx.core as mx
import numpy as np

from macai.diffusion.models.layout import to_mlx, to_torch
from macai.models.arrays import named_arrays
from tests.diffusion.models.text_vae_cases import loaded, random_weights, with_random_weights
from tests.diffusion.models.unet_cases import KINDS, inputs_of, model_of, outputs_of


def shapes_of(model):
    return {n: a.shape for n, a in to_torch(named_arrays(model.parameters())).items()}


def test_there_and_back_is_the_same_array_for_every_name():
    for kind in ("sd1", "sd2", "controlnet"):
        model = model_of(KINDS[kind])
        weights = random_weights(shapes_of(model))
        there = to_mlx(weights)
        assert {n: a.shape for n, a in there.items()} == {
            n: a.shape for n, a in named_arrays(model.parameters()).items()
        }
        back = to_torch(there)
        assert back.keys() == weights.keys()
        assert all(np.array_equal(np.array(back[n]), weights[n]) for n in weights)


def test_a_convolution_is_that_of_torch_written_out():
    weights = {"weight": np.arange(54.0, dtype=np.float32).reshape(3, 2, 3, 3)}
    there = to_mlx(weights)["weight"]
    assert all(
        there[o, y, x, i].item() == weights["weight"][o, i, y, x]
        for o, i, y, x in np.ndindex(3, 2, 3, 3)
    )


def test_arrays_of_mlx_keep_their_type():
    name = "conv_in.weight"
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        array = mx.random.normal((16, 4, 3, 3)).astype(dtype)
        assert to_mlx({name: array})[name].dtype == dtype


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
        loaded(ours, weights)
        (output,) = outputs_of(ours, inputs_of(KINDS["sd1"]))
        outputs.append(output)
        (wanted,) = outputs_of(with_random_weights(theirs), inputs_of(KINDS["sd1"]))
        assert np.abs(output - wanted).max() < 1e-5
