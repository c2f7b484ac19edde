from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from macai.errors import TrainingError
from macai.models.arrays import named_arrays
from macai.train.loop import train
from macai.train.loss import _picked, next_token_loss
from macai.train.optimizer import init
from tests.train.cases import batch_of, in_this_process, make_examples, step_of

# Very unequal parts: 60 learnt tokens in one, 1 to 3 in the others.
SIZES = ((90, 60), (4, 1), (7, 3), (9, 2), (5, 1))
PARTS = ([0], [1], [2, 3], [4])


@pytest.fixture(scope="module")
def examples():
    return make_examples(*SIZES)


def sgd():
    return optim.SGD(learning_rate=1.0)


def adamw(weight_decay=0.0):
    return optim.AdamW(learning_rate=1.0, weight_decay=weight_decay, bias_correction=True)


def run(model, steps, *, optimizer=None, rate=0.01, max_grad_norm=0.0, seed=0, **options):
    """Train and return the reports; the model holds the result."""
    optimizer = optimizer or sgd()
    init(optimizer, model)
    reports = train(
        model,
        optimizer,
        steps,
        gradient=in_this_process(model),
        rate=rate if callable(rate) else lambda step: rate,
        max_grad_norm=max_grad_norm,
        seed=seed,
        **options,
    )
    return list(reports)


def weights(model):
    return {k: np.array(v) for k, v in named_arrays(model.trainable_parameters()).items()}


def change(model, steps, **options):
    """Return the reports and how much each weight changed."""
    before = weights(model)
    reports = run(model, steps, **options)
    return reports, {k: v - before[k] for k, v in weights(model).items()}


def gradient_computed_apart(model, examples, rows):
    """Gradient of the mean over all learnt tokens of these rows, each row alone and unpadded."""

    def mean(model):
        total, count = mx.array(0.0), 0
        for i in rows:
            ids = mx.array(examples[i].ids)
            learnt = mx.array(np.flatnonzero(examples[i].learn))
            scores = model(ids[None])[0]
            log_p = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
            total = total - log_p[learnt - 1, ids[learnt]].sum()
            count += len(learnt)
        return total / count

    loss, grads = nn.value_and_grad(model, mean)(model)
    return loss.item(), {k: np.array(v, np.float64) for k, v in named_arrays(grads).items()}


def is_close(a, b):
    return all(np.abs(a[k] - b[k]).max() <= 1e-4 * np.abs(b[k]).max() + 1e-8 for k in b)


def test_micro_batches_add_up_to_one_large_batch(adapted, examples):
    (whole,), expected = change(adapted(), [step_of(examples)])
    (parts,), actual = change(adapted(), [step_of(examples, *PARTS)])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    assert is_close(actual, expected)


def test_a_step_follows_the_gradient_computed_apart(adapted, examples):
    model = adapted()
    loss, grads = gradient_computed_apart(model, examples, range(5))
    (report,), changed = change(model, [step_of(examples, *PARTS)], rate=0.01)
    assert report.loss == pytest.approx(loss, rel=1e-5)
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    assert report.grad_norm == pytest.approx(norm, rel=1e-4)
    assert is_close(changed, {k: -0.01 * g for k, g in grads.items()})


def test_a_mean_of_means_would_be_noticed(adapted, examples):
    model = adapted()
    _, grads = gradient_computed_apart(model, examples, range(5))
    means = [gradient_computed_apart(model, examples, rows)[1] for rows in PARTS]
    mean_of_means = {k: np.mean([g[k] for g in means], axis=0) for k in grads}
    assert not is_close(mean_of_means, grads)


def test_dropout_follows_from_seed_step_and_micro_batch_alone(adapted):
    (one,) = make_examples((40, 30))
    steps = [step_of([one, one], [0], [1])] * 3

    def losses(**options):
        mx.random.seed(np.random.default_rng().integers(99))  # what else was drawn is no matter
        return [r.loss for r in run(adapted(dropout=0.3), steps, rate=0.0, **options)]

    first = losses(seed=1)
    assert first == losses(seed=1)
    assert len(set(first)) == 3
    assert set(first).isdisjoint(losses(seed=2))
    assert losses(seed=1, first_step=2)[0] == first[2]
    (single,) = run(adapted(dropout=0.3), [step_of([one])], rate=0.0, seed=1)
    assert single.loss != first[0]  # the two halves of a step have masks of their own


def test_without_dropout_nothing_is_random(adapted, examples):
    losses = {run(adapted(), [step_of(examples)], seed=seed)[0].loss for seed in range(3)}
    assert len(losses) == 1


def test_a_report_counts_its_tokens(adapted, examples):
    steps = [step_of(examples, *PARTS), step_of(examples, [1])]
    first, second = run(adapted(), steps, first_step=5)
    assert (first.step, second.step) == (6, 7)
    assert (first.learnt_tokens, second.learnt_tokens) == (67, 1)
    assert (first.real_tokens, second.real_tokens) == (115, 4)
    assert (first.processed_tokens, second.processed_tokens) == (96 + 8 + 2 * 8 + 8, 8)
    assert first.seconds > 0
    assert first.peak_memory_bytes > 0


def test_the_rate_is_that_of_the_steps_number(adapted, examples):
    asked = []

    def rate(step):
        asked.append(step)
        return 10.0 ** -(step + 1)

    reports, changed = change(adapted(), [step_of(examples)], rate=rate, first_step=2)
    assert set(asked) == {2}
    assert reports[0].learning_rate == 1e-3
    _, unit = change(adapted(), [step_of(examples)], rate=1e-3)
    assert is_close(changed, unit)


@pytest.mark.parametrize("norm", [0.1, 1e9, 0.0])
def test_a_large_gradient_is_scaled_down_to_the_norm_asked_for(adapted, examples, norm):
    (free,), expected = change(adapted(), [step_of(examples)], rate=1.0)
    (report,), changed = change(adapted(), [step_of(examples)], rate=1.0, max_grad_norm=norm)
    assert free.grad_norm > 0.2
    assert report.grad_norm == free.grad_norm  # that before
    factor = norm / free.grad_norm if norm == 0.1 else 1.0
    assert is_close(changed, {k: v * factor for k, v in expected.items()})


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_five_steps_are_those_of_adamw_in_numpy(adapted, examples, weight_decay):
    """Loshchilov and Hutter's algorithm 2 in float64, with the gradient clipped to norm 0.5."""
    model, beta1, beta2, eps = adapted(), 0.9, 0.999, 1e-8
    own = {k: v.astype(np.float64) for k, v in weights(model).items()}
    m = {k: np.zeros_like(v) for k, v in own.items()}
    v = {k: np.zeros_like(w) for k, w in own.items()}
    optimizer = adamw(weight_decay)
    init(optimizer, model)
    rows = [[0], [1, 2], [3, 4], [0, 4], [2, 3]]
    reports = train(
        model,
        optimizer,
        [step_of(examples, r) for r in rows],
        gradient=in_this_process(model),
        rate=lambda step: 1e-3 * (step + 1),
        max_grad_norm=0.5,
        seed=0,
    )
    for t, r in enumerate(rows, 1):
        _, grads = gradient_computed_apart(model, examples, r)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        rate = 1e-3 * t
        for k, g in grads.items():
            g = g * min(1.0, 0.5 / norm)
            m[k] = beta1 * m[k] + (1 - beta1) * g
            v[k] = beta2 * v[k] + (1 - beta2) * g**2
            step = (m[k] / (1 - beta1**t)) / (np.sqrt(v[k] / (1 - beta2**t)) + eps)
            own[k] = own[k] * (1 - rate * weight_decay) - rate * step
        next(reports)
    for k, w in weights(model).items():
        # A gradient near zero has a sign, and so a whole step, that rounding decides.
        apart = np.abs(w - own[k])
        assert np.quantile(apart, 0.99) < 2e-5, k
        assert apart.max() < 0.015 / 3, k


def test_only_the_adapter_is_trained(adapted, examples):
    model = adapted()
    frozen = {k: v for k, v in named_arrays(model.parameters()).items() if "lora" not in k}
    before = {k: np.array(v) for k, v in frozen.items()}
    _, changed = change(model, [step_of(examples)], optimizer=adamw())
    assert all("lora" in k and np.abs(v).max() > 0 for k, v in changed.items())
    after = named_arrays(model.parameters())
    assert all((np.array(after[k]) == v).all() for k, v in before.items())


def is_refused_and_nothing_changes(model, steps, logits=_picked):
    optimizer = adamw()
    init(optimizer, model)
    reports = train(
        model,
        optimizer,
        steps,
        gradient=in_this_process(model, logits),
        rate=lambda step: 1e-3,
        max_grad_norm=1.0,
        seed=0,
    )
    assert next(reports).step == 1
    before, moments = weights(model), named_arrays(optimizer.state)
    with pytest.raises(TrainingError, match="step 2: the loss is") as caught:
        next(reports)
    assert "lower optimizer.learning_rate" in caught.value.hint
    assert all((v == before[k]).all() for k, v in weights(model).items())
    assert all(mx.array_equal(v, moments[k]) for k, v in named_arrays(optimizer.state).items())
    return caught.value.message


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(adapted, examples, weight):
    broken = batch_of(examples)
    broken = replace(broken, weights=broken.weights * weight)
    message = is_refused_and_nothing_changes(
        adapted(), [step_of(examples), [*step_of(examples, [1]), lambda: broken]]
    )
    assert "the loss is nan" in message


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(adapted, examples):
    def hidden(model, ids, *args):
        states = _picked.hidden(model, ids, *args)
        if len(ids) < 3:
            return states
        return states + mx.sqrt(0 * states)  # zero, with an infinite slope

    logits = replace(_picked, hidden=hidden)
    steps = [step_of(examples, [0, 1]), step_of(examples, [0, 1, 2])]
    message = is_refused_and_nothing_changes(adapted(), steps, logits)
    assert "the loss is nan" not in message
    assert "the gradient's norm nan" in message


def test_the_loss_is_that_before_the_step_and_falls(adapted, examples):
    model = adapted()
    before = next_token_loss(model, batch_of(examples), _picked).item() / 67
    reports = run(model, [step_of(examples)] * 10, optimizer=adamw(), rate=3e-3)
    assert reports[0].loss == pytest.approx(before, rel=1e-5)
    assert reports[-1].loss < before - 0.3


def test_training_mode_is_on(adapted, examples):
    model = adapted(dropout=0.5)
    model.eval()
    run(model, [step_of(examples)])
    assert model.training
