"""Runs whose steps several processes compute."""

import json
import shutil

import mlx.core as mx
import pytest

from macai import finetune as finetune_module
from macai.errors import TrainingError
from macai.finetune import finetune
from macai.models.arrays import save_arrays
from macai.models.load import load_model
from macai.recipe import Adapter, Batch, Optimizer, Recipe, Schedule, Train, load_recipe
from macai.train.checkpoint import load_checkpoint
from macai.train.events import Stopped, Summary
from macai.train.loop import Report
from macai.train.team import Team
from tests.finetune.runs import assert_same_but_for_rounding, outcome, write_rows

pytestmark = pytest.mark.skipif(
    mx.default_device() != mx.cpu, reason="on a GPU one process computes"
)


def recipe(workers, *, recompute=False, **adapter):
    return Recipe(
        model="tiny",
        adapter=Adapter(rank=4, targets=("q_proj", "down_proj"), **adapter),
        optimizer=Optimizer(learning_rate=1e-3),
        schedule=Schedule(warmup_steps=2),
        batch=Batch(tokens=256, micro_tokens=160, recompute=recompute),
        train=Train(epochs=1, eval_every=3, workers=workers),
    )


@pytest.fixture(scope="module")
def run(tiny_dir, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    write_rows(data / "train.jsonl", range(20))
    write_rows(data / "valid.jsonl", range(20, 25))

    def run(recipe, out, *, stop_at=None, each=None, **options):
        """Run to the end, or until `stop_at` steps are done, and return the events."""
        events, done = [], [0]
        for event in finetune(
            recipe,
            load_model(tiny_dir),
            data=data,
            out=out,
            should_stop=lambda: done[0] == stop_at,
            **options,
        ):
            if isinstance(event, Report):
                done[0] = event.step
            events.append(event)
            if each:
                each(event)
        return events

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The folders and the events of uninterrupted runs, by their number of workers."""
    folder = tmp_path_factory.mktemp("whole")
    return {n: (folder / str(n), run(recipe(n), folder / str(n))) for n in (1, 2)}


def reports_of(events):
    return [e for e in events if isinstance(e, Report)]


def test_two_workers_take_the_steps_of_one(whole):
    (one, alone), (two, together) = whole[1], whole[2]
    assert (alone[0].workers, together[0].workers) == (1, 2)
    assert (alone[-1].workers, together[-1].workers) == (1, 2)
    steps = list(zip(reports_of(alone), reports_of(together), strict=True))
    assert len(steps) > 4
    for a, b in steps:
        assert (a.real_tokens, a.learnt_tokens) == (b.real_tokens, b.learnt_tokens)
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    assert alone[-1].best_valid_loss == pytest.approx(together[-1].best_valid_loss, rel=1e-5)
    assert_same_but_for_rounding(two, one, most=1e-5)


def test_workers_keep_less_for_the_gradient_too_and_no_bit_is_another(run, whole, tmp_path):
    run(recipe(2, recompute=True), tmp_path / "run")
    ours, theirs = (load_checkpoint(folder).arrays for folder in (tmp_path / "run", whole[2][0]))
    assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def stopped(run, tmp_path_factory):
    """A run of two workers that was stopped after three steps."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    assert run(recipe(2), out, stop_at=3)[-1] == Stopped(step=3)
    return out


def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(run, whole, stopped, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    assert isinstance(run(recipe(2), out, resume=True)[-1], Summary)
    assert outcome(out) == outcome(whole[2][0])


def test_the_number_may_change_and_changes_the_result_by_rounding(run, whole, stopped, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    events = run(recipe(1), out, resume=True)
    assert (events[0].first_step, events[0].workers, events[-1].workers) == (3, 1, 1)
    assert_same_but_for_rounding(out, whole[2][0], most=1e-5)


def test_left_to_the_machine_a_resumed_run_has_as_many_as_before(
    run, whole, stopped, tmp_path, monkeypatch
):
    monkeypatch.setattr("macai.train.machine.cores", lambda: 2)
    out = shutil.copytree(stopped, tmp_path / "run")
    assert run(recipe(0), out, stop_at=4, resume=True)[0].workers == 2
    assert run(recipe(0), tmp_path / "new", stop_at=1)[0].workers == 1  # too small a model
    assert load_recipe(tmp_path / "new" / "recipe.toml").train.workers == 0


def test_a_checkpoint_of_before_there_were_workers_goes_on_with_one(run, whole, tmp_path):
    out = shutil.copytree(whole[1][0], tmp_path / "run")
    checkpoint = load_checkpoint(out)
    del checkpoint.state["progress"]["workers"]
    state = {"macai": json.dumps(checkpoint.state)}
    save_arrays(out / "checkpoint.safetensors", checkpoint.arrays, state)
    assert run(recipe(0), out, resume=True)[0].workers == 1


def test_a_run_whose_worker_is_killed_ends_and_goes_on_from_its_checkpoint(
    run, whole, tmp_path, monkeypatch
):
    out, teams = tmp_path / "run", []

    def noted(*args):
        teams.append(Team(*args))
        return teams[-1]

    def kill_after_four(event):
        if isinstance(event, Report) and event.step == 4:
            teams[0]._workers[0].process.kill()

    monkeypatch.setattr(finetune_module, "Team", noted)
    with pytest.raises(TrainingError, match="a worker process was ended by SIGKILL") as caught:
        run(recipe(2), out, each=kill_after_four)
    assert "--resume --set train.workers=1; the last checkpoint is intact" in caught.value.hint
    assert teams[0]._workers == []
    monkeypatch.undo()
    assert run(recipe(1), out, resume=True)[0].first_step == 3  # it saves when it validates
    assert_same_but_for_rounding(out, whole[1][0], most=1e-5)
