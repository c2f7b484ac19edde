"""What is added to a weight is what PEFT adds (golden), and what the papers' formulas say."""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.lora.parts import BrokenLayerError, make_update, sort_tensors
from macai.diffusion.lora.updates import LowRank, Magnitude, Update, delta, fits
from tests.diffusion.lora.lora_cases import GOLDENS, drawn, psnr

LEAST = 120  # dB


@cache
def golden():
    with np.load(GOLDENS / "diffusion_lora.npz") as arrays:
        return dict(arrays)


def peft_case(case):
    """Return the update, the weight and the delta of a case of the golden."""
    own = {
        n.removeprefix(f"delta/{case}/"): a
        for n, a in golden().items()
        if n.startswith(f"delta/{case}/")
    }
    weight, wanted, scale = own.pop("weight"), own.pop("delta"), float(own.pop("scale"))
    layers, others = sort_tensors([f"layer.{name}" for name in own])
    assert list(layers) == ["layer"]
    assert not others
    parts = {p: mx.array(own[n.removeprefix("layer.")]) for p, n in layers["layer"].items()}
    update = make_update(parts)
    return Update(factors=update.factors, scale=scale, magnitude=update.magnitude), weight, wanted


CASES = [
    *("loha-linear", "loha-conv", "loha-tucker", "lokr-linear", "lokr-whole", "lokr-conv"),
    *("lokr-tucker", "dora-linear", "dora-conv"),
]


@pytest.mark.parametrize("case", CASES)
def test_a_delta_is_what_peft_adds(case):
    update, weight, wanted = peft_case(case)
    assert fits(update, weight.shape)
    assert psnr(delta(update, weight=mx.array(weight)), wanted) > LEAST


def test_the_golden_has_no_case_that_is_not_tested():
    assert {n.split("/")[1] for n in golden() if n.startswith("delta/")} == set(CASES)


def low_rank(out=6, into=5, kernel=(), rank=2, scale=1.5):
    down = drawn("down", rank, into, *kernel)
    up = drawn("up", out, rank, *(1,) * len(kernel))
    factors = LowRank(down=mx.array(down), up=mx.array(up))
    return Update(factors=factors, scale=scale), down, up


def test_a_low_rank_delta_is_scale_times_up_times_down():
    update, down, up = low_rank()
    assert np.abs(np.array(delta(update)) - 1.5 * up @ down).max() < 1e-6
    assert np.abs(np.array(delta(update, strength=-2)) + 3 * up @ down).max() < 1e-6


def test_a_convolutions_delta_is_that_of_two_convolutions_in_a_row():
    update, down, up = low_rank(kernel=(3, 2))
    x = mx.array(drawn("x", 2, 7, 8, 5))
    low = mx.conv2d(x, mx.array(down).transpose(0, 2, 3, 1))
    wanted = 1.5 * mx.conv2d(low, mx.array(up).transpose(0, 2, 3, 1))
    weight = delta(update, weight=mx.zeros((6, 5, 3, 2))).transpose(0, 2, 3, 1)
    assert psnr(mx.conv2d(x, weight), np.array(wanted)) > LEAST


def test_a_tucker_delta_is_that_of_three_convolutions_in_a_row():
    down, mid, up = drawn("d", 2, 5, 1, 1), drawn("m", 2, 2, 3, 2), drawn("u", 6, 2, 1, 1)
    x = mx.array(drawn("x", 2, 7, 8, 5))
    arrays = [mx.array(w) for w in (down, mid, up)]
    wanted = x
    for weight in arrays:
        wanted = mx.conv2d(wanted, weight.transpose(0, 2, 3, 1))
    update = Update(factors=LowRank(down=arrays[0], mid=arrays[1], up=arrays[2]))
    weight = delta(update).transpose(0, 2, 3, 1)
    assert psnr(mx.conv2d(x, weight), np.array(wanted)) > LEAST


def kohya_dora(update, vector_shape):
    """Return `update` with a dora_scale of this shape, and its numbers."""
    vector = np.abs(1 + drawn("dora", *vector_shape))
    parts = {"down": update.factors.down, "up": update.factors.up, "dora_scale": mx.array(vector)}
    made = make_update(parts)
    return Update(factors=made.factors, scale=update.scale, magnitude=made.magnitude), vector


@pytest.mark.parametrize(
    ("kernel", "vector", "axes"),
    [
        ((), (1, 5), (0,)),
        ((), (6, 1), (1,)),
        ((3, 2), (1, 5, 1, 1), (0, 2, 3)),
        ((3, 2), (6, 1, 1, 1), (1, 2, 3)),
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.25, -2.0])
def test_kohyas_dora_brings_the_norms_of_inputs_or_outputs_to_its_scale(
    kernel, vector, axes, strength
):
    plain, _, _ = low_rank(kernel=kernel)
    update, numbers = kohya_dora(plain, vector)
    weight = drawn("weight", 6, 5, *kernel)
    total = weight + np.array(delta(plain), np.float64).reshape(weight.shape)
    norms = np.sqrt((total**2).sum(axis=axes, keepdims=True))
    wanted = strength * (total * numbers / norms - weight)
    assert fits(update, weight.shape)
    assert psnr(delta(update, weight=mx.array(weight), strength=strength), wanted) > LEAST


@pytest.mark.parametrize("strength", [1.0, 0.25, -2.0])
def test_pefts_dora_has_the_strength_inside_the_norm(strength):
    plain, _, _ = low_rank()
    vector = np.abs(1 + drawn("dora", 6))
    magnitude = Magnitude(vector=mx.array(vector), per="output", strength_inside=True)
    update = Update(factors=plain.factors, scale=plain.scale, magnitude=magnitude)
    weight = drawn("weight", 6, 5)
    total = weight + strength * np.array(delta(plain), np.float64)
    wanted = total * vector[:, None] / np.linalg.norm(total, axis=1, keepdims=True) - weight
    assert psnr(delta(update, weight=mx.array(weight), strength=strength), wanted) > LEAST


@pytest.mark.parametrize("inside", [True, False])
def test_a_strength_of_zero_adds_exactly_nothing(inside):
    plain, _, _ = low_rank()
    magnitude = Magnitude(vector=mx.ones(6), per="output", strength_inside=inside)
    update = Update(factors=plain.factors, magnitude=magnitude)
    weight = mx.array(drawn("weight", 6, 5))
    for one in (plain, update):
        assert not np.array(delta(one, weight=weight, strength=0.0)).any()


def test_dora_on_a_weight_of_zeros_is_finite():
    plain, _, _ = low_rank(scale=0.0)
    magnitude = Magnitude(vector=mx.ones(6), per="output", strength_inside=False)
    update = Update(factors=plain.factors, scale=0.0, magnitude=magnitude)
    assert np.isfinite(np.array(delta(update, weight=mx.zeros((6, 5))))).all()


def test_dora_without_a_weight_is_refused():
    plain, _, _ = low_rank()
    update, _ = kohya_dora(plain, (6, 1))
    with pytest.raises(ValueError, match="depends on the weight"):
        delta(update)


@pytest.mark.parametrize(
    ("kernel", "shape", "wanted"),
    [
        ((), (6, 5), True),
        ((), (6, 5, 1, 1), True),
        ((1, 1), (6, 5), True),
        ((3, 3), (6, 5, 3, 3), True),
        ((3, 3), (6, 5, 1, 1), False),
        ((3, 3), (6, 5), False),
        ((2, 3), (6, 5, 3, 2), False),
        ((), (5, 6), False),
        ((), (6, 4), False),
        ((), (6, 5, 3, 3), False),
    ],
)
def test_an_update_fits_its_weight_and_the_same_one_as_a_convolution(kernel, shape, wanted):
    update, _, _ = low_rank(kernel=kernel)
    assert fits(update, shape) is wanted


def test_a_flat_factor_fits_the_convolution_it_was_flattened_from():
    update, _, _ = low_rank(into=5 * 6)
    assert fits(update, (6, 5, 3, 2))
    assert not fits(update, (6, 5, 3, 3))


PART = {"down": (2, 5), "up": (6, 2)}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"down": (2, 5)}, "up is missing"),
        ({"up": (6, 2)}, "down is missing"),
        ({"alpha": ()}, "down is missing"),
        (PART | {"up": (6, 3)}, "do not go together .*2, 5.*6, 3"),
        (PART | {"down": (2,)}, "do not go together"),
        (PART | {"down": (0, 5), "up": (6, 0)}, "do not go together"),
        (PART | {"mid": (2, 3, 3, 3)}, "do not go together"),
        (PART | {"down": (2, 5, 3)}, "do not go together"),
        (PART | {"alpha": (2,)}, "alpha is .2., not one number"),
        (PART | {"diff_b": (5,)}, "diff_b is .5."),
        (PART | {"bias": (6,)}, "bias beside LowRank"),
        (PART | {"hada_w1_a": (6, 2)}, "hada_w1_b is missing"),
        (PART | {"dora_scale": (6, 2)}, "DoRA vector is .6, 2."),
        (PART | {"dora_scale": (6, 1), "magnitude": (6,)}, "both"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (3, 1)}, "lokr_w2_b is missing"),
        ({"lokr_w1": (2, 2), "lokr_w2": (3, 1), "lokr_t2": (1, 1, 3, 3)}, "lokr_t2 beside Kron"),
        (
            dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (2, 2))
            | {"hada_t1": (2, 2, 3, 3)},
            "hada_t1 or hada_t2 is missing",
        ),
    ],
)
def test_tensors_that_do_not_go_together_are_named(parts, message):
    arrays = {n: mx.array(drawn(n, *shape)) for n, shape in parts.items()}
    with pytest.raises(BrokenLayerError, match=message):
        make_update(arrays)


def test_tensors_of_whole_numbers_are_refused():
    with pytest.raises(BrokenLayerError, match=r"down is .*int8"):
        make_update({"down": mx.zeros((2, 5), mx.int8), "up": mx.zeros((6, 2))})


@pytest.mark.parametrize(
    ("alpha", "scale"), [(None, 1.0), (1.0, 0.5), (8.0, 4.0), (-2.0, -1.0), (0.0, 1.0)]
)
def test_the_scale_is_alpha_by_rank_and_1_without_alpha(alpha, scale):
    parts = {n: mx.array(drawn(n, *shape)) for n, shape in PART.items()}
    if alpha is not None:
        parts["alpha"] = mx.array(alpha)
    assert make_update(parts).scale == scale


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number_is_refused(alpha):
    parts = {n: mx.array(drawn(n, *shape)) for n, shape in PART.items()}
    with pytest.raises(BrokenLayerError, match="alpha is"):
        make_update(parts | {"alpha": mx.array(alpha)})


def test_alpha_means_nothing_to_whole_kronecker_factors():
    parts = {"lokr_w1": mx.ones((2, 2)), "lokr_w2": mx.ones((3, 1)), "alpha": mx.array(7.0)}
    assert make_update(parts).scale == 1.0
