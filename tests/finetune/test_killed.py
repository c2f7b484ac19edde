"""Kill -9 at any moment of a run."""

import random
import shutil
import signal
import subprocess
import sys
import time

import mlx.core as mx
import pytest

from macai.train.checkpoint import load_checkpoint
from macai.train.events import Validated
from tests.finetune.runs import of_type, outcome, small

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
