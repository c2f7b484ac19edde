"""What a run is expected to take, and what `macai plan` says fits."""

import gc
from dataclasses import replace

import mlx.core as mx
import pytest

from macai.errors import TrainingError
from macai.finetune import finetune
from macai.finetune.expected import PROCESS_BYTES
from macai.finetune.plan import plan
from macai.finetune.wanted import method_of, optimizer_of
from macai.models.arrays import named_arrays
from macai.models.identity import Identity
from macai.models.load import load_model
from macai.models.sizes import model_sizes, open_hollow
from macai.recipe import Adapter, Batch, Data, Loss, Recipe, Train, dumps, load_recipe
from macai.train.events import Started, Summary
from macai.train.footprint import PartShape, Setup, footprint
from tests.finetune.runs import of_type

LORA = Adapter(rank=4)
RECIPE = Recipe(
    model="tiny",
    adapter=LORA,
    batch=Batch(tokens=512),
    train=Train(epochs=1, workers=1),
)


@pytest.fixture
def memory(monkeypatch):
    """Return a function that gives the machine so much memory, Python's own left out."""

    def limit(size):
        available = int(size) + PROCESS_BYTES - mx.get_active_memory()
        monkeypatch.setattr("macai.finetune.expected.available_bytes", lambda: available)

    return limit


METHODS = {
    "lora": LORA,
    "few": Adapter(rank=4, targets=("q_proj", "v_proj"), layers=1),
    "dora": Adapter(rank=4, method="dora"),
    "dropout": Adapter(rank=4, dropout=0.1),
    "head": Adapter(rank=4, modules_to_save=("lm_head",)),
    "full": Adapter(method="full"),
    "last block": Adapter(method="full", layers=1),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_hollow_model_has_the_sizes_of_the_real_one_and_none_of_its_bytes(tiny_dir, method):
    recipe = replace(RECIPE, adapter=METHODS[method])
    loaded = load_model(tiny_dir)
    before = mx.get_active_memory()
    hollow = open_hollow(tiny_dir)
    assert mx.get_active_memory() - before < model_sizes(hollow, loaded.config).weight_bytes / 10
    setups = []
    for model in (loaded.model, hollow):
        method_of(recipe, model, Identity("", "", "")).prepare(model)
        state = named_arrays(optimizer_of(recipe, model).state)
        setups.append((model_sizes(model, loaded.config), {n: a.shape for n, a in state.items()}))
    assert setups[0] == setups[1]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_run_says_what_it_is_expected_to_take_as_the_plan_did(
    tiny_dir, data, tmp_path, recompute
):
    recipe = replace(RECIPE, batch=replace(RECIPE.batch, recompute=recompute))
    planned = plan(recipe, tiny_dir, data)
    gc.collect()
    before = mx.get_active_memory()  # what earlier tests of this process still hold
    events = list(finetune(recipe, load_model(tiny_dir), data=data, out=tmp_path / "run"))
    (started,), (summary,) = of_type(events, Started), of_type(events, Summary)
    assert started.expected_memory_bytes == planned.expected.footprint.total
    assert started.available_memory_bytes > 0
    # So small a model is mostly what the terms leave out: see the slow tests for real ones.
    assert 0.5 < started.expected_memory_bytes / (summary.peak_memory_bytes - before) < 2


def test_a_run_that_cannot_fit_is_refused_before_it_leaves_anything(
    tiny_dir, data, tmp_path, memory
):
    memory(1e6)
    with pytest.raises(TrainingError, match=r"expected to need 0\.4 GB") as caught:
        list(finetune(RECIPE, load_model(tiny_dir), data=data, out=tmp_path / "run"))
    assert "macai plan" in caught.value.hint
    assert "batch.must_fit=false" in caught.value.hint
    assert not (tmp_path / "run").exists()
    anyway = replace(RECIPE, batch=replace(RECIPE.batch, must_fit=False))
    events = list(finetune(anyway, load_model(tiny_dir), data=data, out=tmp_path / "run"))
    assert isinstance(events[-1], Summary)


def changed(tmp_path, recipe, changes):
    file = tmp_path / "changed.toml"
    file.write_text(dumps(recipe))
    return load_recipe(file, changes)


@pytest.mark.parametrize(
    ("micro_tokens", "share", "keys"),
    [
        (0, 1.01, []),
        (0, 0.6, ["batch.micro_tokens"]),
        (64, 0.99, ["batch.micro_tokens", "batch.recompute"]),
    ],
)
def test_the_settings_that_a_plan_names_make_the_run_fit(
    tiny_dir, tmp_path, memory, micro_tokens, share, keys
):
    recipe = replace(RECIPE, data=Data(max_length=256), batch=Batch(tokens=8192))
    smaller = replace(recipe, batch=Batch(tokens=8192, micro_tokens=micro_tokens))
    memory(plan(smaller, tiny_dir).expected.footprint.total * share)
    planned = plan(recipe, tiny_dir)
    assert planned.expected.fits is (share > 1)
    assert planned.changes is not None
    assert [change.partition("=")[0] for change in planned.changes] == keys
    after = plan(changed(tmp_path, recipe, planned.changes), tiny_dir)
    assert after.expected.fits
    assert after.changes == ()


def test_where_nothing_fits_no_setting_is_named(tiny_dir, memory):
    memory(1e5)
    planned = plan(RECIPE, tiny_dir)
    assert (planned.expected.fits, planned.changes) == (False, None)
    assert all(option.rows == 0 for option in planned.options)


def test_where_the_system_says_nothing_nothing_is_refused(tiny_dir, monkeypatch):
    monkeypatch.setattr("macai.finetune.expected.available_bytes", lambda: 0)
    planned = plan(RECIPE, tiny_dir)
    assert (planned.expected.fits, planned.changes) == (None, ())


def test_pairs_of_answers_are_planned_as_a_run_has_them(tiny_dir, tmp_path):
    rows = "".join(
        f'{{"prompt": "Is {n} even?", "chosen": "{n} is that", "rejected": "Never so"}}\n'
        for n in range(12)
    )
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "valid.jsonl").write_text(rows.replace("Is", "Was"))
    recipe = replace(RECIPE, loss=Loss(name="dpo"), batch=Batch(tokens=256))
    planned = plan(recipe, tiny_dir, tmp_path)
    events = finetune(recipe, load_model(tiny_dir), data=tmp_path, out=tmp_path / "run")
    (started,) = of_type(events, Started)
    assert started.expected_memory_bytes == planned.expected.footprint.total
    assert planned.expected.part.rows % 2 == 0


def test_a_probe_measures_a_part_of_the_run_and_corrects_all_that_depends_on_tokens(tiny_dir, data):
    probed, plain = plan(RECIPE, tiny_dir, data, probing=True), plan(RECIPE, tiny_dir, data)
    found = probed.probe
    assert found is not None
    assert found.part == plain.expected.part
    assert found.measured_bytes > 0
    ours, theirs = probed.expected.footprint, plain.expected.footprint
    assert ours.weights == theirs.weights
    assert ours.activations == pytest.approx(theirs.activations * found.factor, rel=1e-3)
    assert ours.total >= found.measured_bytes


def test_terms_grow_with_what_they_are_of(tiny_dir):
    loaded = load_model(tiny_dir)
    method_of(RECIPE, loaded.model, Identity("", "", "")).prepare(loaded.model)
    setup = Setup(sizes=model_sizes(loaded.model, loaded.config), rule="adamw", state_bytes=0)
    part = PartShape(rows=8, width=64, learnt=128)
    one, two = footprint(setup, part), footprint(setup, replace(part, rows=16))
    assert two.activations == pytest.approx(2 * one.activations)
    assert two.weights == one.weights
    less = footprint(replace(setup, recompute=True), part)
    assert less.activations < one.activations / 4
    wide = footprint(setup, PartShape(rows=4, width=128, learnt=128))
    assert wide.activations > one.activations  # attention's weights
    assert footprint(replace(setup, fused=True), replace(part, learnt=0)).activations < (
        one.activations
    )
    added = footprint(setup, part, added=True)
    assert added.gradients - one.gradients == 4 * setup.sizes.trained
