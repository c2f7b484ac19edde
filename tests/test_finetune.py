import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import mlx.core as mx
import pytest

from macai import finetune as finetune_module
from macai.data.rows import read_splits
from macai.data.tokens import prepare
from macai.errors import DataError, OutputError, TrainingError, UsageError
from macai.finetune import finetune
from macai.models.adapter import adapter_weights, load_adapter
from macai.models.load import load_model
from macai.recipe import Adapter, Batch, Data, Optimizer, Recipe, Schedule, Train, load_recipe
from macai.train import objective
from macai.train import run as run_module
from macai.train.checkpoint import load_checkpoint
from macai.train.evaluate import mean_loss
from macai.train.events import Started, Stopped, Summary, Validated
from macai.train.loop import Report
from macai.train.loss import logits_for
from macai.train.metrics import of_step
from tests.tiny import tiny_model_dir

FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "checkpoint.safetensors",
    "metrics.jsonl",
    "recipe.toml",
]
TIMINGS = ("seconds", "step_seconds", "valid_seconds", "tokens_per_second", "peak_memory_bytes")


def small(**changes):
    """16 steps in two epochs, with dropout, and with validations and checkpoints in between."""
    values = {
        "rate": 1e-2,
        "dropout": 0.1,
        "targets": ("q_proj", "down_proj"),
        "rank": 4,
        "epochs": 2,
        "eval_every": 3,
        "save_every": 4,
        "seed": 0,
        "schedule": "cosine",
        "data": Data(),
    } | changes
    return Recipe(
        model="tiny",
        adapter=Adapter(rank=values["rank"], dropout=values["dropout"], targets=values["targets"]),
        optimizer=Optimizer(learning_rate=values["rate"]),
        schedule=Schedule(name=values["schedule"], warmup_steps=2),
        batch=Batch(tokens=256, micro_tokens=96),
        data=values["data"],
        train=Train(
            epochs=values["epochs"],
            seed=values["seed"],
            eval_every=values["eval_every"],
            save_every=values["save_every"],
        ),
    )


def write_rows(file, numbers):
    rows = (
        {
            "prompt": f"What is {i} plus {i}? " * (1 + i % 4),
            "completion": f"It is {2 * i}. " * (1 + i % 3),
        }
        for i in numbers
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", range(20))
    write_rows(folder / "valid.jsonl", range(20, 25))
    return folder


@pytest.fixture
def run(tiny_dir, data):
    def run(recipe, out, *, stop_at=None, base=tiny_dir, data=data, each=None, **options):
        """Run to the end, or until `stop_at` steps are done, and return the events."""
        loaded, events, done = load_model(base), [], [0]
        run = finetune(
            recipe,
            loaded,
            data=data,
            out=out,
            should_stop=lambda: done[0] == stop_at,
            **options,
        )
        for event in run:
            if isinstance(event, Report):
                done[0] = event.step
            events.append(event)
            if each:
                each(event, loaded)
        return events

    return run


@pytest.fixture(scope="module")
def uninterrupted(tiny_dir, data, tmp_path_factory):
    """The outcome of a run of `small()` that nothing stopped, and its events."""
    out = tmp_path_factory.mktemp("whole") / "run"
    events = list(finetune(small(), load_model(tiny_dir), data=data, out=out))
    return outcome(out), events


def untimed(values):
    return {k: v for k, v in values.items() if k not in TIMINGS}


def outcome(out):
    """All a run leaves in its folder, apart from timings; equal means equal to the last bit."""
    assert sorted(p.name for p in out.iterdir()) == FILES
    checkpoint = load_checkpoint(out)
    return {
        "adapter": (out / "adapter_model.safetensors").read_bytes(),
        "config": (out / "adapter_config.json").read_text(),
        "recipe": (out / "recipe.toml").read_text(),
        "arrays": bits(checkpoint.arrays),
        "fingerprint": checkpoint.state["run"],
        "progress": untimed(checkpoint.state["progress"]),
        "metrics": metrics(out),
    }


def bits(arrays):
    return {k: (str(v.dtype), v.shape, bytes(memoryview(v))) for k, v in arrays.items()}


def metrics(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [untimed(json.loads(line)) for line in lines]


def of_type(events, kind):
    return [e for e in events if isinstance(e, kind)]


def test_a_run_says_what_it_does_and_leaves_five_files(uninterrupted):
    left, events = uninterrupted
    started, summary = events[0], events[-1]
    assert isinstance(started, Started)
    assert (started.train_rows, started.valid_rows, started.first_step) == (20, 5, 0)
    assert (started.dropped_rows, started.shortened_rows) == (0, 0)
    assert 0.85 < started.real_share <= 1
    reports = of_type(events, Report)
    assert [r.step for r in reports] == list(range(1, started.steps + 1))
    assert started.steps == 2 * started.steps_per_epoch == 16
    assert isinstance(summary, Summary)
    assert (summary.steps, summary.epochs) == (16, 2.0)
    assert summary.real_tokens == sum(r.real_tokens for r in reports)
    assert summary.processed_tokens == sum(r.processed_tokens for r in reports)
    last = reports[8:]
    learnt = sum(r.learnt_tokens for r in last)
    assert summary.train_loss == pytest.approx(sum(r.loss * r.learnt_tokens for r in last) / learnt)
    validated = of_type(events, Validated)
    assert [v.step for v in validated] == [3, 6, 9, 12, 15, 16]
    assert summary.valid_loss == validated[-1].loss
    assert summary.best_valid_loss == min(v.loss for v in validated)
    logged = [untimed(of_step(r)) for r in reports]
    assert [m for m in left["metrics"] if "valid_loss" not in m] == logged
    assert [m for m in left["metrics"] if "valid_loss" in m] == [
        {"step": v.step, "valid_loss": v.loss} for v in validated
    ]


def test_the_recipe_left_behind_is_the_whole_recipe(run, tmp_path):
    run(small(epochs=0.1), tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "recipe.toml") == small(epochs=0.1)


def test_two_runs_are_the_same_to_the_last_bit_and_another_seed_is_not(
    run, tmp_path, uninterrupted
):
    run(small(), tmp_path / "again")
    assert outcome(tmp_path / "again") == uninterrupted[0]
    run(small(seed=1), tmp_path / "other")
    assert outcome(tmp_path / "other")["adapter"] != uninterrupted[0]["adapter"]


# 1: before any validation; 3: at one; 8: at the end of an epoch; 15: before the last step.
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


@pytest.fixture(scope="module")
def stopped(tiny_dir, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "run"
    list(finetune(small(), load_model(tiny_dir), data=data, out=out, should_stop=lambda: True))
    return out


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


def test_the_first_step_of_adamw_is_as_long_as_its_rate(stopped):
    """B starts at zero and moves by the rate; without bias correction by 3.2 times as much."""
    arrays = load_checkpoint(stopped).arrays
    moved = [mx.abs(v).max().item() for k, v in arrays.items() if k.endswith("q_proj.lora_B")]
    assert moved == pytest.approx([1e-2 / 3] * 2, rel=1e-3)  # the first third of the warm-up


@pytest.mark.parametrize("every", [0, 1, 5])
def test_validating_more_often_changes_nothing_that_is_trained(run, tmp_path, uninterrupted, every):
    expected, events = uninterrupted
    validated = of_type(run(small(eval_every=every), tmp_path / "run"), Validated)
    assert outcome(tmp_path / "run")["arrays"] == expected["arrays"]
    losses = {v.step: v.loss for v in of_type(events, Validated)}
    assert {v.step for v in validated} & losses.keys() >= {16}
    assert all(losses.get(v.step, v.loss) == v.loss for v in validated)


def test_every_validation_scores_the_same_rows(run, tmp_path):
    """A model that does not change has the same loss each time."""
    events = run(small(rate=1e-30, eval_every=1), tmp_path / "run")
    validated = of_type(events, Validated)
    assert len(validated) == 16
    assert len({v.loss for v in validated}) == 1
    assert [v.best for v in validated] == [True] + [False] * 15


def test_the_adapter_of_the_best_validation_is_kept(run, tmp_path, tiny_dir, data, monkeypatch):
    out, best = tmp_path / "run", {}

    def note_best(event, loaded):
        if isinstance(event, Validated) and event.best:
            best.clear()
            best.update(bits(adapter_weights(loaded)))

    validations = []

    def worse_from_the_third_on(*args, **options):
        validations.append(args)
        for done, total, loss in mean_loss(*args, **options):
            yield done, total, loss + 9 * (len(validations) > 2)

    monkeypatch.setattr(finetune_module, "mean_loss", worse_from_the_third_on)
    recipe = small(epochs=2, eval_every=4, dropout=0.0)
    events = run(recipe, out, each=note_best)
    validated, summary = of_type(events, Validated), events[-1]
    assert not validated[-1].best
    assert summary.valid_loss > summary.best_valid_loss == min(v.loss for v in validated)
    assert bits(mx.load(str(out / "adapter_model.safetensors"))) == best
    last = {k: v for k, v in load_checkpoint(out).arrays.items() if k.startswith("model.")}
    assert set(bits(last).values()) != set(best.values())

    loaded = load_model(tiny_dir)
    load_adapter(loaded, out)
    rows = read_splits(data).valid
    examples = prepare([rows], loaded.tokenizer, max_length=1024, truncation="error")[0].examples
    logits = logits_for(load_model(tiny_dir).model)
    *_, (_, _, loss) = mean_loss(loaded.model, examples, logits=logits, tokens=999, pad_id=0)
    assert loss == pytest.approx(summary.best_valid_loss, rel=1e-5)


# Step 5 is an ordinary one; after step 6 comes a validation, which is the first to see the damage.
@pytest.mark.parametrize(("step", "why"), [(5, "step 6: the loss"), (6, "the validation loss is")])
def test_a_run_that_diverges_leaves_what_it_had_and_can_go_on(
    run, tmp_path, uninterrupted, monkeypatch, step, why
):
    out, files = tmp_path / "run", {}
    real = finetune_module.learning_rate

    def explode(name, number, **options):
        return 1e30 if number == step - 1 else real(name, number, **options)

    def note_files(event, loaded):
        if isinstance(event, Report) and event.step == 5:
            files.update({p.name: p.read_bytes() for p in out.iterdir() if p.is_file()})

    monkeypatch.setattr(finetune_module, "learning_rate", explode)
    with pytest.raises(TrainingError, match=why) as caught:
        run(small(), out, each=note_files)
    assert "the last checkpoint is intact" in caught.value.hint
    assert sorted(p.name for p in out.iterdir()) == FILES
    for name in ("adapter_model.safetensors", "checkpoint.safetensors"):
        assert (out / name).read_bytes() == files[name]
    monkeypatch.setattr(finetune_module, "learning_rate", real)
    assert run(small(), out, resume=True)[0].first_step == 4
    assert outcome(out) == uninterrupted[0]


def test_an_existing_run_is_refused_and_left_alone_without_force(run, stopped, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(OutputError, match="run exists already"):
        run(small(), out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == files


def test_with_force_nothing_of_an_earlier_run_is_left(run, stopped, tmp_path, uninterrupted):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    run(small(), out, force=True)
    assert outcome(out) == uninterrupted[0]


def test_an_empty_folder_is_no_run(run, tmp_path):
    assert isinstance(run(small(epochs=0.1), tmp_path)[-1], Summary)


def test_an_output_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/run: cannot be written: Not a directory"):
        run(small(), tmp_path / "file" / "run")


def test_bad_rows_or_targets_leave_no_folder(run, tmp_path, data):
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "valid.jsonl").write_text("[]\n")
    with pytest.raises(DataError, match=r"(?s)train.jsonl:1: .*valid.jsonl:1: "):
        run(small(), tmp_path / "run", data=tmp_path)
    with pytest.raises(UsageError, match="no linear layer is called 'q'"):
        run(small(targets=("q",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_to_check_with_that_are_learnt_stop_a_run_unless_it_is_told_not_to_be_strict(
    run, tmp_path
):
    write_rows(tmp_path / "train.jsonl", range(5))
    write_rows(tmp_path / "valid.jsonl", range(4, 6))
    with pytest.raises(DataError, match=r"valid.jsonl:1 is the same as .*train.jsonl:5"):
        run(small(), tmp_path / "run", data=tmp_path)
    assert not (tmp_path / "run").exists()
    lenient = small(data=Data(strict=False), epochs=0.1)
    assert isinstance(run(lenient, tmp_path / "run", data=tmp_path)[-1], Summary)


def test_rows_left_out_or_cut_are_counted(run, tmp_path):
    def started(truncation):
        limits = Data(max_length=40, truncation=truncation)
        recipe = small(data=limits, epochs=0.1)
        return run(recipe, tmp_path / truncation)[0]

    with pytest.raises(DataError, match=r"(?s)train.*over max_length = 40.*valid.*over") as caught:
        started("error")
    assert "data.truncation" in str(caught.value.hint)
    dropped, cut = started("drop"), started("keep-end")
    assert dropped.dropped_rows + dropped.train_rows + dropped.valid_rows == 25
    assert dropped.dropped_rows == cut.shortened_rows > 0
    assert cut.train_rows + cut.valid_rows == 25


def test_a_small_model_learns_twenty_rows_by_heart(run, tmp_path):
    # With its head: that of a random model tells few tokens apart.
    targets = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head")
    recipe = small(rank=16, targets=targets, epochs=12, eval_every=0, dropout=0.0)
    events = run(recipe, tmp_path / "run")
    assert of_type(events, Report)[0].loss > 5
    assert events[-1].train_loss < 0.5


KILLED = """
import sys
from pathlib import Path
from macai.finetune import finetune
from macai.models.load import load_model
from macai.recipe import load_recipe
recipe, base, data, out, resume = sys.argv[1:]
for _ in finetune(load_recipe(Path(recipe)), load_model(Path(base)), data=Path(data),
                  out=Path(out), resume=resume == "resume", force=True):
    pass
"""


def kill_at_some_moment(arguments, out, moment):
    """Start a run and kill it so many seconds after it began to write; return whether it lived."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments)])
    before = size(out / "metrics.jsonl")
    while process.poll() is None and size(out / "metrics.jsonl") in (before, 0):
        time.sleep(0.002)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def size(file):
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "epochs", "every"),
    [(4, 6.0, 1), pytest.param(20, 40.0, 2, marks=pytest.mark.long)],
)
def test_a_killed_run_leaves_only_whole_files_and_can_go_on(
    run, tmp_path, tiny_dir, data, times, epochs, every
):
    recipe = small(eval_every=every, save_every=every, epochs=epochs)
    expected, out, file = tmp_path / "expected", tmp_path / "run", tmp_path / "recipe.toml"
    run(recipe, expected)
    shutil.copy(expected / "recipe.toml", file)
    moments, kills = random.Random(0), 0
    for _ in range(times):
        start = "resume" if (out / "checkpoint.safetensors").exists() else "start"
        kills += kill_at_some_moment(
            [file, tiny_dir, data, out, start], out, moments.uniform(0.0, 0.5)
        )
        for saved in out.glob("[!.]*.safetensors"):
            mx.eval(mx.load(str(saved)))
        if (out / "checkpoint.safetensors").exists():
            load_checkpoint(out)
    assert kills >= times - 2
    run(recipe, out, resume=True)
    assert outcome(out) == outcome(expected)


@pytest.mark.slow
def test_a_real_model_learns_and_resumes_to_the_last_bit(smollm2_dir, tmp_path, data, run):
    recipe = small(rate=5e-3, epochs=0.5, eval_every=2, dropout=0.05, targets=("q_proj", "v_proj"))
    validated = of_type(run(recipe, tmp_path / "whole", base=smollm2_dir), Validated)
    assert validated[-1].loss < validated[0].loss - 0.1
    run(recipe, tmp_path / "run", base=smollm2_dir, stop_at=3)
    run(recipe, tmp_path / "run", base=smollm2_dir, resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
