"""What a run keeps in memory does not grow with its steps, nor what a step takes with the rows."""

import gc

import mlx.core as mx
import pytest

from macai.bench.memory import footprint_bytes
from macai.finetune import finetune
from macai.models.load import load_model
from macai.recipe import Adapter, Batch, Optimizer, Recipe, Train
from macai.train.events import Started
from macai.train.loop import Report
from tests.finetune.runs import write_rows

STEPS = 10_000
WARM_UP = 2_000  # by then caches, and the heap's own, are as large as they get
MOST_GROWTH = 2 << 20  # of 8,000 steps; 300 bytes a step would be more


def recipe(**train):
    return Recipe(
        model="tiny",
        adapter=Adapter(rank=4, targets=("q_proj", "down_proj")),
        optimizer=Optimizer(learning_rate=1e-4),
        batch=Batch(tokens=128),
        train=Train(workers=1, **train),
    )


def events(tiny_dir, folder, rows, made):
    folder.mkdir()
    write_rows(folder / "train.jsonl", range(1000, 1000 + rows))
    write_rows(folder / "valid.jsonl", range(2000, 2008))
    return finetune(made, load_model(tiny_dir), data=folder, out=folder / "out", force=True)


@pytest.mark.long
@pytest.mark.slow
def test_ten_thousand_steps_leave_memory_as_it_was(tiny_dir, tmp_path):
    started, seen = None, {}
    made = recipe(epochs=10_000, eval_every=500, save_every=500)
    for event in events(tiny_dir, tmp_path / "run", 40, made):
        if isinstance(event, Started):
            started = event
        if isinstance(event, Report) and event.step % 1000 == 1:  # after saving and validating
            gc.collect()
            seen[event.step] = footprint_bytes(), mx.get_active_memory(), mx.get_peak_memory()
        if isinstance(event, Report) and event.step > STEPS:
            break
    assert started.steps > STEPS
    resident, active, peak = zip(*(v for k, v in seen.items() if k > WARM_UP), strict=True)
    assert len(resident) == 9
    assert max(active) - min(active) < 1 << 16
    assert peak[-1] - peak[0] < 1 << 12
    assert resident[-1] - resident[0] < MOST_GROWTH


def peak_of_an_epoch(tiny_dir, folder, rows):
    mx.clear_cache()
    before = mx.get_active_memory()
    *_, last = (
        e for e in events(tiny_dir, folder, rows, recipe(epochs=1)) if isinstance(e, Report)
    )
    return last.peak_memory_bytes - before


@pytest.mark.slow
def test_a_step_takes_as_much_memory_with_twelve_times_the_rows(tiny_dir, tmp_path):
    few = peak_of_an_epoch(tiny_dir, tmp_path / "few", 64)
    many = peak_of_an_epoch(tiny_dir, tmp_path / "many", 12 * 64)
    assert few > 1 << 20
    assert many < 1.02 * few
