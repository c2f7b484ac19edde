"""Runs whose rows all begin with the same system prompt."""

import json
from dataclasses import replace

import pytest

from macai.finetune import finetune
from macai.models.load import load_model
from macai.recipe import Adapter, Batch, Optimizer, Recipe, Schedule, Train
from macai.train.events import Stopped
from macai.train.loop import Report

SYSTEM = "You add numbers for a child of five, and you never say more than the sum."
RECIPE = Recipe(
    model="tiny",
    adapter=Adapter(rank=4, targets=("q_proj", "down_proj")),
    optimizer=Optimizer(learning_rate=1e-2),
    schedule=Schedule(warmup_steps=2),
    batch=Batch(tokens=1024),
    train=Train(epochs=2, eval_every=3),
)


def write_rows(file, numbers, system=SYSTEM):
    rows = (
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"What is {i} plus {i}? " * (1 + i % 2)},
                {"role": "assistant", "content": f"It is {2 * i}."},
            ]
        }
        for i in numbers
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train.jsonl", range(24))
    write_rows(folder / "valid.jsonl", range(24, 30))
    return folder


@pytest.fixture
def run(tiny_dir, data, tmp_path):
    def run(name, recipe=RECIPE, *, stop_at=None, **options):
        done = [0]
        events = []
        for event in finetune(
            recipe,
            load_model(tiny_dir),
            data=data,
            out=tmp_path / name,
            should_stop=lambda: done[0] == stop_at,
            **options,
        ):
            if isinstance(event, Report):
                done[0] = event.step
            events.append(event)
        return events

    return run


def reports_of(events):
    return [e for e in events if isinstance(e, Report)]


def rows_of_steps(events):
    """What tells which rows were in a step."""
    return [(r.step, r.real_tokens, r.learnt_tokens) for r in reports_of(events)]


def test_it_is_computed_once_a_batch_and_the_run_is_the_same(run, monkeypatch):
    shared = run("shared")
    monkeypatch.setattr("macai.finetune.run.can_share_prefix", lambda model: False)
    whole = run("whole")
    assert (shared[0].shared_prefix > 20, whole[0].shared_prefix) == (True, 0)
    assert rows_of_steps(shared) == rows_of_steps(whole)
    pairs = list(zip(reports_of(shared), reports_of(whole), strict=True))
    assert len(pairs) > 4
    for a, b in pairs:
        assert a.processed_tokens < b.processed_tokens
        assert a.loss == pytest.approx(b.loss, rel=1e-3)
    assert shared[-1].best_valid_loss == pytest.approx(whole[-1].best_valid_loss, rel=1e-3)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(run, tmp_path):
    run("whole")
    assert run("parts", stop_at=2)[-1] == Stopped(step=2)
    assert run("parts", resume=True)[0].shared_prefix > 20
    whole, parts = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert whole == parts


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, batch=Batch(tokens=1024, micro_tokens=128)),
        replace(RECIPE, adapter=replace(RECIPE.adapter, dropout=0.1)),
    ],
    ids=["few rows a micro-batch", "dropout"],
)
def test_where_it_would_not_pay_or_not_be_the_same_steps_keep_their_rows(run, recipe):
    shared, without = run("shared"), run("without", recipe)
    assert without[0].shared_prefix == 0
    assert rows_of_steps(without) == rows_of_steps(shared)


def test_one_row_that_begins_otherwise_is_enough_to_do_without(run, data):
    shared = run("shared")
    write_rows(data / "valid.jsonl", range(24, 30), system="Add.")
    without = run("without")
    assert without[0].shared_prefix == 0
    assert rows_of_steps(without) == rows_of_steps(shared)
