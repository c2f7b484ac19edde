"""Each rule against its formula, written down again in numpy; the oracle tier has torch's own."""

import importlib

import mlx.core as mx
import numpy as np
import pytest

from macai.errors import UsageError
from macai.models.arrays import named_arrays
from macai.models.lora import add_lora, target_paths
from macai.train.footprint import UPDATE_COPIES
from macai.train.optimizer import init, joined, make_optimizer, update
from macai.train.rules import RULES
from macai.train.rules.adamw8bit import AdamW8bit, _signed, _signed_codes
from macai.train.rules.muon import orthogonal
from macai.train.rules.rule import Options

OPTIONS = {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}


def gradients(model, steps=5):
    """A gradient for every step, by name; float32 numpy."""
    rng = np.random.default_rng(0)
    arrays = named_arrays(model.trainable_parameters())
    return [
        {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in arrays.items()}
        for _ in range(steps)
    ]


def take(model, name, steps, **options):
    """The trainable arrays before and after some steps, and the optimiser."""
    optimizer = make_optimizer(name, model, **OPTIONS | options)
    before = {k: np.array(v) for k, v in named_arrays(model.trainable_parameters()).items()}
    for grads in steps:
        optimizer.learning_rate = OPTIONS["learning_rate"]
        update(optimizer, model, joined({k: mx.array(v) for k, v in grads.items()}))
        mx.eval(model.parameters(), optimizer.state)
    after = {k: np.array(v) for k, v in named_arrays(model.trainable_parameters()).items()}
    return before, after, optimizer


def adamw(w, grads, *, rate=1e-2, beta1=0.9, beta2=0.99, decay=0.1):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        step = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
        w = w - rate * decay * w - rate * step
    return w


def lion(w, grads):
    m = np.zeros_like(w)
    for g in grads:
        w = w - 1e-2 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * w)
        m = 0.99 * m + 0.01 * g
    return w


def adafactor(w, grads):
    rows, columns = np.zeros(w.shape[0]), np.zeros(w.shape[1])
    for t, g in enumerate(grads, 1):
        keep, square = 1 - t**-0.8, g * g + 1e-30
        rows = keep * rows + (1 - keep) * square.mean(1)
        columns = keep * columns + (1 - keep) * square.mean(0)
        step = g / np.sqrt(np.outer(rows, columns) / rows.mean())
        step /= max(1, np.sqrt((step * step).mean()))
        w = w - 1e-2 * 0.1 * w - 1e-2 * step
    return w


def muon(w, grads):
    m = np.zeros_like(w)
    for g in grads:
        m = 0.9 * m + 0.1 * g
        x = 0.9 * m + 0.1 * g
        x /= np.linalg.norm(x)
        for _ in range(5):
            s = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
            p = -4.775 * s + 2.0315 * s @ s
            x = 3.4445 * x + (x @ p if x.shape[0] > x.shape[1] else p @ x)
        w = w * (1 - 1e-2 * 0.1) - 1e-2 * 0.2 * np.sqrt(max(w.shape)) * x
    return w


FORMULAS = {"adamw": adamw, "lion": lion, "adafactor": adafactor, "muon": muon}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_rule_is_its_formula_for_every_array(adapted, name):
    model = adapted()
    steps = gradients(model)
    before, after, _ = take(model, name, steps)
    for key, w in before.items():
        expected = FORMULAS[name](w.astype(np.float64), [g[key].astype(np.float64) for g in steps])
        assert np.abs(after[key] - expected).max() < 2e-5
        assert np.abs(after[key] - w).max() > 1e-3


def test_every_rule_has_a_recipe_name_and_a_test():
    from typing import get_args, get_type_hints

    from macai.recipe import Optimizer

    assert set(get_args(get_type_hints(Optimizer)["name"])) == set(RULES)
    assert set(FORMULAS) | {"adamw8bit"} == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_state_that_went_through_a_file_gives_the_same_next_step(adapted, name, tmp_path):
    from macai.train.checkpoint import load_checkpoint, restore, save_checkpoint

    model = adapted()
    steps = gradients(model)
    _, _, optimizer = take(model, name, steps[:3], loraplus_lr_ratio=3.0)
    save_checkpoint(tmp_path, model, optimizer, {})
    _, expected, _ = take(model, name, [])
    optimizer.learning_rate = 1e-3
    update(optimizer, model, joined({k: mx.array(v) for k, v in steps[3].items()}))
    expected = {k: np.array(v) for k, v in named_arrays(model.trainable_parameters()).items()}
    again = adapted()
    fresh = make_optimizer(name, again, **OPTIONS, loraplus_lr_ratio=3.0)
    restore(load_checkpoint(tmp_path), again, fresh)
    fresh.learning_rate = 1e-3
    update(fresh, again, joined({k: mx.array(v) for k, v in steps[3].items()}))
    actual = {k: np.array(v) for k, v in named_arrays(again.trainable_parameters()).items()}
    assert all((actual[k] == expected[k]).all() for k in expected)


@pytest.mark.parametrize("name", RULES)
def test_lora_plus_is_another_rate_for_b_and_none_for_a(adapted, name):
    model = adapted()
    steps = gradients(model, 2)
    _, plain, _ = take(model, name, steps, weight_decay=0.0)
    before, plus, _ = take(adapted(), name, steps, weight_decay=0.0, loraplus_lr_ratio=4.0)
    for key, w in before.items():
        ratio = 4 if key.endswith("lora_B") else 1
        # In 8 bits the blocks begin elsewhere, so the codes differ.
        atol = 2e-3 if name == "adamw8bit" else 2e-6
        np.testing.assert_allclose(plus[key] - w, ratio * (plain[key] - w), atol=ratio * atol)


def test_lora_plus_without_a_b_is_refused(tiny):
    with pytest.raises(UsageError, match="nothing here has a B"):
        make_optimizer("adamw", tiny.model, **OPTIONS, loraplus_lr_ratio=4.0)


def test_muon_leaves_vectors_embeddings_and_the_head_to_adamw(tiny):
    shapes = {k: v.shape for k, v in named_arrays(tiny.model.parameters()).items()}
    matrices, rest = RULES["muon"](shapes, Options(**OPTIONS))
    outside = {"model.embed_tokens.weight", "lm_head.weight"}
    assert set(rest.arrays) == outside | {k for k, shape in shapes.items() if len(shape) == 1}
    assert set(matrices.arrays) | set(rest.arrays) == set(shapes)
    lora = {"lm_head.lora_A": (4, 64), "lm_head.lora_B": (476, 4)}
    assert [part.name for part in RULES["muon"](lora, Options(**OPTIONS))] == ["matrices"]


@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (32, 48)])
def test_what_muon_makes_orthogonal_has_singular_values_near_one(shape):
    matrix = mx.random.normal(shape, key=mx.random.key(0)) * 1e-3
    values = np.linalg.svd(np.array(orthogonal(matrix)), compute_uv=False)
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_eight_bits_take_a_quarter_of_the_memory(adapted):
    model = adapted()
    add = sum(v.size for v in named_arrays(model.trainable_parameters()).values())
    _, _, optimizer = take(model, "adamw8bit", [])
    held = sum(v.nbytes for v in named_arrays(optimizer.state).values())
    assert held < 2.1 * add + 2048


def run8(steps, *, rate=1e-2, threshold=None):
    """A vector of 1000 towards a target under noise: in 8 bits, and by the formula in float64."""
    rng = np.random.default_rng(1)
    target = rng.standard_normal(1000) * np.logspace(-3, 0, 1000)
    options = Options(**OPTIONS | {"learning_rate": rate, "beta2": 0.999, "weight_decay": 0.0})
    optimizer, w = AdamW8bit(options), mx.zeros(1000)
    optimizer.init({"all": w})
    grads, exact = [], np.zeros(1000)
    m, v = np.zeros(1000), np.zeros(1000)
    for t in range(1, steps + 1):
        noise = rng.standard_normal(1000) * 0.1 * np.logspace(-3, 0, 1000)
        g = exact - target + noise
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        exact = exact - rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        ours = mx.array((np.array(w, np.float64) - target + noise).astype(np.float32))
        w = optimizer.apply_gradients({"all": ours}, {"all": w})["all"]
        mx.eval(w, optimizer.state)
        grads.append(g)
    return np.array(w), exact, target


def test_eight_bits_end_where_float_does():
    ours, exact, target = run8(400)
    error = np.linalg.norm(ours - target) / np.linalg.norm(target)
    assert error < 1.2 * np.linalg.norm(exact - target) / np.linalg.norm(target) + 0.01
    assert np.linalg.norm(ours - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("nearest", [False, True])
def test_a_mean_of_squares_falls_when_gradients_do_and_rounding_to_nearest_would_not(
    nearest, monkeypatch
):
    module = importlib.import_module("macai.train.rules.adamw8bit")
    if nearest:
        real = module._unsigned_codes
        monkeypatch.setattr(module, "_unsigned_codes", lambda v, _: real(v, mx.array(0.5)))
    optimizer = AdamW8bit(Options(**OPTIONS | {"beta2": 0.999}))
    w, ones = mx.zeros(256), mx.ones(256)
    optimizer.init({"all": w})
    small = mx.where(mx.arange(256) == 0, 1.0, 1e-3)  # one that goes on keeps the largest
    for step in range(700):
        optimizer.apply_gradients({"all": ones if step < 50 else small}, {"all": w})
        mx.eval(optimizer.state)
    state = optimizer.state["all"]
    ours = module._unsigned(state["v"], state["v_max"]).reshape(-1)[1:].mean().item()
    exact = (1 - 0.999**50) * 0.999**650
    if nearest:
        assert ours > 1.3 * exact
    else:
        assert ours == pytest.approx(exact, rel=0.1)


def test_codes_keep_the_sign_and_the_largest_and_small_ones_to_a_step():
    values = mx.array(np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32))
    codes, largest = _signed_codes(values, mx.array(0.5))
    back = np.array(_signed(codes, largest))
    assert (np.sign(back) * np.sign(np.array(values)) >= 0).all()
    share = np.sqrt(np.abs(np.array(values)) / np.array(largest))
    allowed = 2 * (share + 1 / 127) / 127 * np.array(largest)
    assert (np.abs(back - np.array(values)) <= allowed).all()
    assert codes.dtype == mx.int8


def test_weights_of_half_precision_move_by_less_than_their_last_digit(tiny):
    tiny.model.set_dtype(mx.bfloat16)
    add_lora(
        tiny.model,
        target_paths(tiny.model, ["q_proj"]),
        rank=2,
        alpha=2,
        modules_to_save=["lm_head"],
    )
    optimizer = make_optimizer("adamw", tiny.model, **OPTIONS | {"weight_decay": 0.0})
    ones = {k: mx.ones(v.shape) for k, v in named_arrays(tiny.model.trainable_parameters()).items()}
    before = tiny.model.lm_head.weight
    for _ in range(40):
        optimizer.learning_rate = 1e-5
        update(optimizer, tiny.model, joined(ones))
    after = tiny.model.lm_head.weight
    assert after.dtype == mx.bfloat16
    moved = (after.astype(mx.float32) - before.astype(mx.float32)).mean().item()
    assert moved == pytest.approx(-40 * 1e-5, rel=0.3)
    init(optimizer, tiny.model)


def test_what_each_rule_copies_is_known_to_the_plan():
    assert UPDATE_COPIES.keys() == RULES.keys()
