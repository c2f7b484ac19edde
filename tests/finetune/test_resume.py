"""A run that is stopped and goes on is the run that nothing stopped, to the last bit."""

import shutil
from dataclasses import asdict, replace

import pytest

from macai.errors import TrainingError
from macai.train import objective
from macai.train import run as run_module
from macai.train.events import Stopped
from tests.finetune.runs import outcome, small, untimed, write_rows
from tests.tiny import tiny_model_dir


@pytest.mark.parametrize("stop", [1, 3, 5, 8, 15])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(run, tmp_path, uninterrupted, stop):
    out, (expected, events) = tmp_path / "run", uninterrupted
    assert run(small(), out, stop_at=stop)[-1] == Stopped(step=stop)
    resumed = run(small(), out, resume=True)
    assert resumed[0].first_step == stop
    assert outcome(out) == expected
    assert untimed(asdict(resumed[-1])) | {"adapter": ""} == untimed(asdict(events[-1])) | {
        "adapter": ""
    }


def test_every_row_is_learnt_once_in_each_epoch_of_a_run_that_is_stopped(
    run, tmp_path, monkeypatch
):
    def note(examples, plan, **options):
        if len(examples) == 20:  # of validation there are 5
            seen.extend(plan.rows)
        return real(examples, plan, **options)

    seen, real, out = [], objective.make_batch, tmp_path / "run"
    monkeypatch.setattr(objective, "make_batch", note)
    run(small(), out, stop_at=3)
    run(small(), out, stop_at=11, resume=True)
    run(small(), out, resume=True)
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert seen[:20] != seen[20:]


def test_a_run_resumed_twice_is_the_uninterrupted_one(run, tmp_path, uninterrupted):
    out = tmp_path / "run"
    run(small(), out, stop_at=2)
    assert run(small(), out, stop_at=9, resume=True)[-1] == Stopped(step=9)
    run(small(), out, resume=True)
    assert outcome(out) == uninterrupted[0]


def test_starting_the_optimiser_anew_would_be_noticed(run, tmp_path, uninterrupted, monkeypatch):
    def forgetful(checkpoint, model, optimizer):
        moments = optimizer.state
        real(checkpoint, model, optimizer)
        optimizer.state = moments

    real = run_module.restore
    run(small(), tmp_path / "run", stop_at=8)
    monkeypatch.setattr(run_module, "restore", forgetful)
    run(small(), tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run")["arrays"] != uninterrupted[0]["arrays"]


def test_what_came_after_the_checkpoint_is_done_anew(run, tmp_path, uninterrupted):
    """As after a crash: the log is ahead of the checkpoint and its last line is cut off."""
    out = tmp_path / "run"
    run(small(), out, stop_at=4)
    early = (out / "checkpoint.safetensors").read_bytes()
    run(small(), out, stop_at=7, resume=True)
    (out / "checkpoint.safetensors").write_bytes(early)
    with (out / "metrics.jsonl").open("a") as f:
        f.write('{"step": 8, "lo')
    (out / ".checkpoint.0a1b2c3d.partial.safetensors").write_bytes(b"half")
    assert run(small(), out, resume=True)[0].first_step == 4
    assert outcome(out) == uninterrupted[0]


def test_resuming_a_finished_run_gives_the_same_summary(run, tmp_path):
    out = tmp_path / "run"
    summary = run(small(epochs=1), out)[-1]
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    started, again = run(small(epochs=1), out, resume=True)
    assert started.first_step == started.steps
    assert again == summary
    assert {p.name: p.read_bytes() for p in out.iterdir()} == files


@pytest.mark.parametrize(
    "change", [{"rate": 1e-3}, {"epochs": 3}, {"seed": 1}, {"dropout": 0.2}, {"eval_every": 2}]
)
def test_resuming_with_another_recipe_is_refused(run, stopped, change):
    with pytest.raises(
        TrainingError, match=r"its run had another recipe\n  \w+\.\w+ = \S+ there, \S+ here$"
    ):
        run(small(**change), stopped, resume=True)


def test_resuming_with_other_data_is_refused(run, stopped, tmp_path):
    for name, numbers in (("train", range(20)), ("valid", range(21, 26))):
        write_rows(tmp_path / f"{name}.jsonl", numbers)
    with pytest.raises(TrainingError, match=r"its run had another data set$"):
        run(small(), stopped, data=tmp_path, resume=True)


def test_resuming_on_another_base_is_refused(run, stopped, tmp_path):
    other = tiny_model_dir(tmp_path / "other", seed=1)
    with pytest.raises(TrainingError, match=r"its run had another base model$") as caught:
        run(small(), stopped, base=other, resume=True)
    assert "all it was started with" in caught.value.hint
    with pytest.raises(TrainingError, match=r"another recipe and base model\n"):
        run(small(rate=1e-3), stopped, base=other, resume=True)


def test_how_often_it_saves_may_change(run, stopped, tmp_path, uninterrupted):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    run(small(save_every=1), out, resume=True)
    assert outcome(out)["arrays"] == uninterrupted[0]["arrays"]


def test_keeping_less_for_the_gradient_changes_no_bit_and_may_be_asked_for_on_resuming(
    run, stopped, tmp_path, uninterrupted
):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    less = replace(small(), batch=replace(small().batch, recompute=True))
    run(less, out, resume=True)
    assert outcome(out) == uninterrupted[0]
    run(less, tmp_path / "anew")
    assert outcome(tmp_path / "anew")["arrays"] == uninterrupted[0]["arrays"]


def test_a_whole_number_is_the_same_recipe_with_and_without_a_point(run, stopped, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    assert small(epochs=2.0) == small()
    assert run(small(epochs=2.0), out, stop_at=2, resume=True)[-1] == Stopped(step=2)


def test_there_must_be_something_to_resume(run, tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint to resume from"):
        run(small(), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
