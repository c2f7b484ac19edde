"""What is shown of a run while it goes on."""

import io
from dataclasses import fields

import pytest
from rich.console import Console

from macai.cli.training_view import TextTrainingView
from macai.train.events import Summary, Validated
from macai.train.loop import Report


def step(number, **more):
    return Report(
        step=number,
        loss=4.0 / number,
        learning_rate=1.5e-4,
        grad_norm=0.51234,
        learnt_tokens=10,
        real_tokens=900,
        processed_tokens=1000,
        seconds=0.5,
        peak_memory_bytes=2_100_000_000,
        **more,
    )


@pytest.fixture(params=[False, True])
def view(request, monkeypatch):
    said = io.StringIO()
    console = Console(file=said, force_terminal=request.param, width=100, color_system=None)
    monkeypatch.setattr("macai.cli.training_view.console", lambda: console)
    view = TextTrainingView()
    view.said = said
    return view


def test_a_step_is_said_with_loss_rate_gradient_speeds_and_memory(view):
    with view:
        view.begin(["rows"], workers=1, steps=2, first_step=0)
        view.show(step(1))
        view.show(Validated(step=1, loss=2.5, best=True))
        view.show(step(2))
    text = view.said.getvalue()
    assert "loss 2.000 (2.500 validated)" in text
    assert "rate 1.5e-04  gradient 0.512  1800 tokens/s of 2000 computed  2.1 GB" in text
    assert "step 1: validation loss 2.5000, the best so far: kept" in text
    assert "2/2" in text
    assert "margin" not in text


def test_of_two_answers_margin_and_accuracy_are_said(view):
    with view:
        view.begin(["rows"], workers=1, steps=1, first_step=0)
        view.show(
            step(1, rewards={"chosen": 0.5, "rejected": 0.1, "margin": 0.4, "accuracy": 0.75})
        )
    assert "margin 0.400  right 75%" in view.said.getvalue()


@pytest.mark.parametrize(("best", "warned"), [(10.8, True), (4.5, False), (0.2, False)])
def test_a_run_that_made_the_model_worse_is_not_praised(view, best, warned):
    facts = dict.fromkeys([field.name for field in fields(Summary)], 1) | {"best_valid_loss": best}
    with view:
        view.begin(["rows"], workers=1, steps=1, first_step=0)
        view.show(step(1))
        view.show(Summary(**facts))
    assert ("this run made the model worse" in view.said.getvalue()) == warned
