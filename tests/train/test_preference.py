"""The losses of two answers: their formulas in numpy, their gradients by finite differences."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.data.batches import Plan
from macai.data.pairs import make_pairs, pair_lengths, prepare_pairs
from macai.data.rows import Row
from macai.data.tokens import prepare
from macai.errors import DataError, UsageError
from macai.models.arrays import named_arrays
from macai.models.lora import adapter_off
from macai.train.loss import _picked, next_token_loss
from macai.train.losses import LOSSES, Compared
from macai.train.losses.compared import Options
from macai.train.objective import PairObjective, TokenObjective
from macai.train.optimizer import joined
from macai.train.preference import pair_loss_value
from macai.train.rewards import Rewards
from tests.train.cases import PAD, batch_of, make_examples

OPTIONS = Options(beta=0.7, margin=0.3, label_smoothing=0.1, good_weight=1.2, bad_weight=0.8)
EXAMPLES = make_examples((14, 5), (12, 6), (9, 3), (20, 11), (7, 2), (8, 4))
for number, example in enumerate(EXAMPLES):
    object.__setattr__(example, "good", number // 2 != 1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def formula(name, c, r, cr, rr, nc, nr, good, o):
    """As the papers and TRL write them, for arrays of pairs."""
    if name == "dpo":
        x = o.beta * ((c - r) - (cr - rr))
        return -(1 - 0.1) * np.log(sigmoid(x)) - 0.1 * np.log(sigmoid(-x))
    if name == "simpo":
        return -np.log(sigmoid(o.beta * (c / nc - r / nr - o.margin / o.beta)))
    if name == "orpo":
        p, q = np.exp(c / nc), np.exp(r / nr)
        return -np.log(p) - o.beta * np.log(sigmoid(np.log(p / (1 - p) / (q / (1 - q)))))
    kl = max(0, (r - rr).mean())
    liked = 1.2 * (1 - sigmoid(o.beta * (c - cr - kl)))
    return np.where(good, liked, 0.8 * (1 - sigmoid(o.beta * (kl - (c - cr)))))


def compared(seed=0):
    rng = np.random.default_rng(seed)
    sums = [-rng.uniform(2, 9, 6) for _ in range(4)]
    return [*sums, rng.integers(2, 9, 6), rng.integers(2, 9, 6), rng.random(6) < 0.5]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_formula_of_its_paper(name):
    values = compared()
    names = ("first", "second", "first_reference", "second_reference", "first_tokens")
    fields = dict(zip((*names, "second_tokens", "good"), map(mx.array, values), strict=True))
    answers = Compared(**{k: v if k == "good" else v.astype(mx.float32) for k, v in fields.items()})
    ours = np.array(LOSSES[name].each(answers, OPTIONS))
    np.testing.assert_allclose(ours, formula(name, *values, OPTIONS), rtol=1e-4)


def log_probabilities(model, examples):
    """The log probability of the learnt tokens of each row, on its own, in float64."""
    sums = []
    for example in examples:
        scores = np.array(model(mx.array(example.ids)[None])[0].astype(mx.float32), np.float64)
        log = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        learnt = np.flatnonzero(example.learn)
        sums.append(log[learnt - 1, example.ids[learnt]].sum())
    return np.array(sums)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_gives_what_the_rows_give_one_by_one(adapted, name, prefix):
    for example in EXAMPLES:
        example.ids[:2] = (7, 9)
    model = adapted()
    batch = make_pairs(EXAMPLES, Plan((2, 0, 1), 40), pad_id=PAD, prefix=prefix)
    order = [4, 0, 2, 5, 1, 3]
    rows = [EXAMPLES[i] for i in order]
    policy = log_probabilities(model, rows)
    with adapter_off(model):
        reference = log_probabilities(model, rows)
    assert np.abs(policy - reference).max() > 1e-2
    tokens = np.array([e.learnt_tokens for e in rows])
    good = np.array([True, True, False])
    values = (policy[:3], policy[3:], reference[:3], reference[3:], tokens[:3], tokens[3:], good)
    expected = formula(name, *values, OPTIONS).sum()
    ours = pair_loss_value(model, batch, _picked, LOSSES[name], OPTIONS)
    assert ours == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_in_two_passes_is_mlxs_in_one_and_what_differences_give(adapted, name):
    model = adapted()
    loss, make = LOSSES[name], lambda: make_pairs(EXAMPLES, Plan((0, 1, 2), 40), pad_id=PAD)
    objective = PairObjective(loss=loss, options=OPTIONS)
    gradient = objective.gradient(model, _picked)
    sums = gradient([(0, make)], 1)
    assert (sums.learnt_tokens, sums.real_tokens) == (3, 70)
    from macai.train.preference import reference_of

    reference = reference_of(model, make(), _picked, loss)
    (value, _), grads = nn.value_and_grad(model, gradient._whole)(model, make(), reference)
    assert sums.loss == pytest.approx(value.item(), rel=1e-4)
    expected = np.array(joined(grads))
    assert np.abs(np.array(sums.vector) - expected).max() < 1e-4 * np.abs(expected).max()
    if name == "kto":
        return  # its divergence is no part of the gradient, but of a difference
    layer = model.model.layers[1].mlp.down_proj
    before, at = layer.lora_B, 0
    names = list(named_arrays(model.trainable_parameters()))
    for key in names[: names.index("model.layers.1.mlp.down_proj.lora_B")]:
        at += named_arrays(model.trainable_parameters())[key].size
    values = []
    for sign in (1, -1):
        layer.lora_B = before + sign * 1e-2 * (mx.arange(before.size).reshape(before.shape) == 5)
        values.append(pair_loss_value(model, make(), _picked, loss, OPTIONS))
    assert sums.vector[at + 5].item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.05)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_says_what_its_answers_are_worth(adapted, name):
    model, loss = adapted(), LOSSES[name]
    gradient = PairObjective(loss=loss, options=OPTIONS).gradient(model, _picked)
    parts = [
        (n, lambda rows=rows: make_pairs(EXAMPLES, Plan(rows, 40), pad_id=PAD))
        for n, rows in enumerate([(0, 1), (2,)])
    ]
    rewards = gradient(parts, 1).rewards
    policy = log_probabilities(model, EXAMPLES)
    with adapter_off(model):
        reference = log_probabilities(model, EXAMPLES)
    if name in ("dpo", "kto"):
        worth = 0.7 * (policy - reference)
    else:
        worth = 0.7 * policy / np.array([e.learnt_tokens for e in EXAMPLES])
    better, worse = worth[::2], worth[1::2]
    if name == "kto":  # the answers to other prompts are not rated
        better, worse = better[[0, 2]], better[[1]]
    means = rewards.means()
    assert means["chosen"] == pytest.approx(better.mean(), rel=1e-3)
    assert means["rejected"] == pytest.approx(worse.mean(), rel=1e-3)
    assert means["margin"] == pytest.approx(better.mean() - worse.mean(), rel=1e-2, abs=1e-4)
    if name == "kto":
        assert "accuracy" not in means
    else:
        assert means["accuracy"] == pytest.approx((better > worse).mean())
    each = [gradient([part], 1).rewards for part in parts]
    assert vars_of(each[0] + each[1]) == pytest.approx(vars_of(rewards), rel=1e-4)


def vars_of(rewards):
    return {name: getattr(rewards, name) for name in rewards.__slots__}


def test_of_answers_of_one_kind_there_is_no_margin():
    empty = {"rejected": 0.0, "rejected_answers": 0, "right": 0, "pairs": 0}
    assert Rewards(chosen=3.0, chosen_answers=2, **empty).means() == {"chosen": 1.5}


def test_without_its_adapter_a_model_is_its_base_and_afterwards_itself_again(adapted, tiny_dir):
    from macai.models.load import load_model

    model, ids = adapted(), mx.array([[5, 80, 33]])
    before = model(ids)
    with adapter_off(model):
        assert mx.array_equal(model(ids), load_model(tiny_dir).model(ids)).item()
    assert mx.array_equal(model(ids), before).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_in_two_passes_is_mlxs_and_the_formula(adapted, smoothing):
    model = adapted()
    batch = batch_of(EXAMPLES)
    gradient = TokenObjective(label_smoothing=smoothing).gradient(model, _picked)
    sums = gradient([(0, lambda: batch)], 1)
    loss, grads = nn.value_and_grad(model, next_token_loss)(model, batch, _picked, smoothing)
    expected = np.array(joined(grads))
    assert np.abs(np.array(sums.vector) - expected).max() < 2e-6 * np.abs(expected).max() + 1e-6
    assert sums.loss == pytest.approx(loss.item(), rel=1e-5)
    total = 0.0
    for example in EXAMPLES:
        scores = np.array(model(mx.array(example.ids)[None])[0], np.float64)
        log = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        learnt = np.flatnonzero(example.learn)
        hit = log[learnt - 1, example.ids[learnt]]
        total -= ((1 - smoothing) * hit + smoothing * log[learnt - 1].mean(-1)).sum()
    assert sums.loss == pytest.approx(total, rel=1e-4)


def rows(**changes):
    made = [
        Row(source=f"r:{i}", prompt=f"What is {i}?", chosen=f"It is {i}.", rejected=f"No {i}, no.")
        for i in range(3)
    ]
    labelled = [
        Row(source=f"l:{i}", prompt=f"What is {i}?", completion=f"It is {i}.", label=i != 1)
        for i in range(3)
    ]
    return {"pairs": made, "labels": labelled}


LIMITS = {"max_length": 100, "truncation": "error"}


def test_a_pair_is_the_two_answers_to_its_prompt(tiny):
    (made,) = prepare_pairs([rows()["pairs"]], tiny.tokenizer, form="pairs", **LIMITS)
    text = [tiny.tokenizer.decode(e.ids[e.learn].tolist()) for e in made.examples]
    assert text[:2] == ["It is 0.<|im_end|>", "No 0, no.<|im_end|>"]
    assert len(text) == 6
    assert pair_lengths(made.examples)[0] == 2 * max(e.read_tokens for e in made.examples[:2])


def test_a_label_comes_with_the_answer_to_the_next_prompt(tiny):
    (made,) = prepare_pairs([rows()["labels"]], tiny.tokenizer, form="labels", **LIMITS)
    text = [tiny.tokenizer.decode(e.ids.tolist()) for e in made.examples]
    assert [e.good for e in made.examples[::2]] == [True, False, True]
    assert "What is 0?" in text[1]
    assert "It is 1." in text[1]
    assert "It is 0." in text[5]


@pytest.mark.parametrize(
    ("form", "given", "message"),
    [("pairs", "labels", "has no 'chosen'"), ("labels", "pairs", "has no 'label'")],
)
def test_rows_of_another_form_are_named_with_the_form_that_is_needed(tiny, form, given, message):
    with pytest.raises(DataError, match="3 bad rows") as caught:
        prepare_pairs([rows()[given]], tiny.tokenizer, form=form, **LIMITS)
    assert message in caught.value.message
    assert '"prompt"' in caught.value.hint


def test_plain_training_on_pairs_says_which_losses_take_them(tiny):
    with pytest.raises(DataError, match=r"set loss\.name to dpo, orpo or simpo"):
        prepare([rows()["pairs"]], tiny.tokenizer, **LIMITS)


def test_answers_are_not_split(tiny):
    limits = LIMITS | {"truncation": "split"}
    with pytest.raises(UsageError, match="whole ones are compared"):
        prepare_pairs([rows()["pairs"]], tiny.tokenizer, form="pairs", **limits)


def test_of_a_pair_that_is_too_long_both_answers_are_left_out(tiny):
    long = Row(source="x:1", prompt="What?", chosen="It is.", rejected="no " * 60)
    limits = {"max_length": 40, "truncation": "drop"}
    (made,) = prepare_pairs([[long, *rows()["pairs"]]], tiny.tokenizer, form="pairs", **limits)
    assert (made.dropped, len(made.examples)) == (1, 6)
