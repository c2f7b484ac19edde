"""How close the expected memory of a run comes to what runs of a real model take."""

import gc
import inspect
import json
import statistics
import textwrap
import unittest

import mlx.core as mx
import pytest

from macai.catalog import find_recipe
from macai.finetune import finetune
from macai.finetune.plan import plan
from macai.models.load import load_model
from macai.recipe import load_recipe
from macai.train.events import Summary
from tests.finetune.runs import of_type

pytestmark = pytest.mark.skipif(
    mx.default_device() != mx.cpu, reason="the terms were measured on the CPU backend"
)

FULL = "adapter.method=full"
SETTINGS = {
    "LoRA, 768 tokens": ["batch.tokens=768"],
    "in parts of 256": ["batch.tokens=768", "batch.micro_tokens=256"],
    "recomputed": ["batch.tokens=768", "batch.recompute=true"],
    "long rows": ["batch.tokens=1024"],
    "long rows, recomputed": ["batch.tokens=1024", "batch.recompute=true"],
    "two processes": ["batch.tokens=768", "train.workers=2"],
    "dropout": ["batch.tokens=512", "adapter.dropout=0.1"],
    "DoRA": ["batch.tokens=512", "adapter.method=dora"],
    "q and v of 10 blocks": [
        "batch.tokens=768",
        'adapter.targets=["q_proj","v_proj"]',
        "adapter.layers=10",
    ],
    "all weights": ["batch.tokens=512", FULL],
    "8 blocks, AdamW in 8 bits": [
        "batch.tokens=512",
        FULL,
        "adapter.layers=8",
        "optimizer.name=adamw8bit",
    ],
}


def write_docstrings(folder, *, words, rows):
    """Write rows of about so many words, two of them to check with: text that no one here wrote."""
    members = [m for module in (unittest, statistics, textwrap) for m in vars(module).values()]
    text = " ".join(
        filter(
            None, (inspect.getdoc(m) for m in members if inspect.isroutine(m) or inspect.isclass(m))
        )
    )
    split = text.split()
    made = [
        {"prompt": " ".join(split[n : n + 20]), "completion": " ".join(split[n + 20 : n + end])}
        for n, end in ((100 * i, words - 5 * (i % 4)) for i in range(rows + 2))
    ]
    for name, part in (("train", made[2:]), ("valid", made[:2])):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in part))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "in parts of 256" else pytest.mark.long)
        for name in SETTINGS
    ],
)
def test_a_run_takes_what_was_expected_and_at_most_a_tenth_less(smollm2_dir, tmp_path, name):
    long = "long" in name
    write_docstrings(tmp_path, words=400 if long else 100, rows=4 if long else 12)
    changes = ["train.epochs=1", "train.workers=1", "data.strict=false", *SETTINGS[name]]
    recipe = load_recipe(find_recipe("lora"), changes)
    expected = plan(recipe, smollm2_dir, tmp_path).expected
    gc.collect()
    others = mx.get_active_memory()  # what other tests of this process keep
    run = finetune(recipe, load_model(smollm2_dir), data=tmp_path, out=tmp_path / "run")
    (summary,) = of_type(run, Summary)
    assert summary.steps >= 2  # in the first one there is no state of the optimiser yet
    peak = summary.peak_memory_bytes - others
    ratio = expected.footprint.total / peak
    print(
        f"| {name} | {expected.footprint.total / 1e6:.0f} | {peak / 1e6:.0f} | {ratio:.3f} |"
    )  # pytest -s
    assert 1 <= ratio < 1.1
