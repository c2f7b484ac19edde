import shutil

import mlx.core as mx
import pytest

from macai import finetune as finetune_module
from macai.data.rows import read_splits
from macai.data.tokens import prepare
from macai.errors import DataError, OutputError, TrainingError, UsageError
from macai.models.adapter import adapter_weights, load_adapter
from macai.models.load import load_model
from macai.recipe import Data, load_recipe
from macai.train.checkpoint import load_checkpoint
from macai.train.evaluate import mean_loss
from macai.train.events import Started, Summary, Validated
from macai.train.loop import Report
from macai.train.loss import logits_for
from macai.train.metrics import of_step
from tests.finetune.runs import FILES, bits, of_type, outcome, small, untimed, write_rows


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
