import numpy as np
import pytest

from macai.train.evaluate import mean_loss
from macai.train.loss import _picked, next_token_loss
from tests.train.cases import PAD, batch_of, make_examples

# The first rows are short and hardly learnt: a mean over batches is far from one over tokens.
SIZES = ((5, 1), (6, 1), (7, 1), (40, 39), (50, 48), (12, 5), (12, 6), (90, 2))


@pytest.fixture(scope="module")
def examples():
    return make_examples(*SIZES)


def measure(model, examples, *, tokens=100):
    options = {"logits": _picked, "tokens": tokens, "pad_id": PAD}
    return list(mean_loss(model, examples, **options))


def test_every_learnt_token_weighs_the_same(adapted, examples):
    model = adapted()
    sums = [next_token_loss(model, batch_of(examples, [i]), _picked).item() for i in range(8)]
    expected = sum(sums) / sum(e.learnt_tokens for e in examples)
    for tokens in (1, 100, 10_000):
        assert measure(model, examples, tokens=tokens)[-1][2] == pytest.approx(expected, rel=1e-5)
    mean_of_means = np.mean([s / e.learnt_tokens for s, e in zip(sums, examples, strict=True)])
    assert mean_of_means != pytest.approx(expected, rel=1e-3)


def test_it_is_the_same_to_the_last_bit_each_time(adapted, examples):
    model = adapted(dropout=0.5)
    first = measure(model, examples)
    assert first == measure(model, examples)


def test_a_prefix_that_all_rows_share_does_not_change_it(adapted):
    examples = make_examples(*((n + 9, learnt) for n, learnt in SIZES))
    for example in examples:
        example.ids[:9] = range(10, 19)
    model = adapted()
    *_, (_, _, expected) = measure(model, examples)
    options = {"logits": _picked, "tokens": 100, "pad_id": PAD}
    *_, (_, _, shared) = mean_loss(model, examples, prefix=9, **options)
    assert shared == pytest.approx(expected, rel=1e-5)


def test_dropout_is_off_meanwhile_and_on_again_after(adapted, examples):
    model = adapted(dropout=0.5)
    model.train()
    modes = {
        model.training for _ in mean_loss(model, examples, logits=_picked, tokens=100, pad_id=PAD)
    }
    assert modes == {False}
    assert model.training
    model.eval()
    measure(model, examples)
    assert not model.training


def test_an_evaluation_given_up_leaves_the_model_as_it_was(adapted, examples):
    model = adapted()
    model.train()
    evaluation = mean_loss(model, examples, logits=_picked, tokens=100, pad_id=PAD)
    next(evaluation)
    evaluation.close()
    assert model.training


def test_progress_counts_the_batches(adapted, examples):
    seen = measure(adapted(), examples, tokens=1)
    assert [(done, total) for done, total, _ in seen] == [(i, 8) for i in range(1, 9)]
