"""Runs that processes share which mlx.launch starts, over the ring of sockets on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from macai.train.checkpoint import FILE, load_checkpoint
from tests.finetune.runs import assert_same_but_for_rounding, write_rows
from tests.tiny import tiny_model_dir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="mlx.launch is for Unix"),
]
LAUNCH = Path(sys.executable).parent / "mlx.launch"
ROOT = Path(__file__).parents[3]
SETTINGS = (
    "batch.tokens=256",
    "adapter.rank=4",
    "optimizer.learning_rate=1e-3",
    "train.epochs=1",
    "train.eval_every=3",
    "train.save_every=2",
    "sample.rows=0",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    tiny_model_dir(folder / "tiny")
    write_rows(folder / "train.jsonl", range(20))
    write_rows(folder / "valid.jsonl", range(20, 25))
    return folder


def command(folder, out, *flags):
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    own = ["--model", str(folder / "tiny"), "--data", str(folder), "--out", str(out)]
    return [sys.executable, "-m", "macai", "train", "lora", *own, *sets, *flags]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


def run(processes, words):
    launched = [str(LAUNCH), "-n", str(processes), "--"] if processes > 1 else []
    return subprocess.run(
        [*launched, *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(folder):
    """The run of one process."""
    out = folder / "whole"
    done = run(1, command(folder, out, "--set", "train.workers=1", "--json"))
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_two_take_the_steps_of_one_and_one_of_them_writes(folder, whole, tmp_path):
    done = run(2, command(folder, tmp_path / "run", "--json"))
    assert done.returncode == 0, done.stderr
    ours, theirs = json.loads(done.stdout), whole[1]  # a second line would be no JSON
    assert (ours["workers"], theirs["workers"]) == (2, 1)
    for name in ("steps", "real_tokens"):
        assert ours[name] == theirs[name]
    for name in ("train_loss", "valid_loss", "best_valid_loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    assert done.stderr.count("rows to learn from") == 1
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(
        p.name for p in whole[0].iterdir()
    )
    assert_same_but_for_rounding(tmp_path / "run", whole[0])


DRIVER = """
import json, sys, tempfile
from pathlib import Path

from macai import finetune as module
from macai.catalog import find_recipe
from macai.finetune import finetune
from macai.models.load import load_model
from macai.recipe import load_recipe
from macai.train.events import Lowered
from macai.train.group import launched
from macai.train.loop import Report
from macai.train.team import Team

o = json.loads(sys.argv[1])
group = launched()
first = group is None or group.first
step, calls, lowered = [0], [0], []


class Small(Team):
    def _own(self, shares, seed):
        calls[0] += 1
        if o.get("fails") == (group.rank if group else 0) and calls[0] == 4:
            raise RuntimeError("[metal::malloc] Unable to allocate 9 bytes.")
        return super()._own(shares, seed)


module.Team = Small
data = Path(o["data"])
events = finetune(
    load_recipe(find_recipe("lora"), [*o["settings"], "train.workers=1"]),
    load_model(data / "tiny"),
    data=Path(o.get("other") or data) if first else data,
    out=Path(o["out"]) if first else Path(tempfile.mkdtemp()) / "run",
    resume=o.get("resume", False),
    should_stop=lambda: first and step[0] == o.get("stop"),  # one is asked, all stop
    group=group,
)
for event in events:
    if isinstance(event, Report):
        step[0] = event.step
    elif isinstance(event, Lowered):
        lowered.append([event.step, event.first_step])
print(json.dumps([type(event).__name__, step[0], lowered]))
"""


@pytest.fixture
def drive(folder, tmp_path):
    def drive(processes, out, **options):
        """Return what each process printed: its last event, its last step, where it began again."""
        script = tmp_path / "driver.py"
        script.write_text(DRIVER)
        said = {"data": str(folder), "settings": SETTINGS, "out": str(out), **options}
        done = run(processes, [sys.executable, str(script), json.dumps(said)])
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        return lines, done

    return drive


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (2, 1),
        pytest.param(1, 2, marks=pytest.mark.long),
        pytest.param(2, 3, marks=pytest.mark.long),
    ],
)
def test_a_stopped_run_goes_on_with_another_number(drive, whole, tmp_path, before, after):
    lines, done = drive(before, tmp_path / "run", stop=3)
    assert lines == [["Stopped", 3, []]] * before, done.stderr
    lines, done = drive(after, tmp_path / "run", resume=True)
    assert lines == [["Summary", whole[1]["steps"], []]] * after, done.stderr
    assert_same_but_for_rounding(tmp_path / "run", whole[0])


@pytest.mark.parametrize("fails", [pytest.param(0, marks=pytest.mark.long), 1])
def test_where_one_has_no_memory_all_begin_again_from_the_last_checkpoint(
    drive, whole, tmp_path, fails
):
    lines, done = drive(2, tmp_path / "run", fails=fails)
    assert [line[:2] for line in lines] == [["Summary", whole[1]["steps"]]] * 2, done.stderr
    assert all(begun[1] == 3 for _, _, ((begun),) in lines)  # saved with the validation of step 3
    assert_same_but_for_rounding(tmp_path / "run", whole[0])


def test_other_rows_in_one_of_them_are_noticed(drive, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_rows(other / "train.jsonl", range(30, 50))
    write_rows(other / "valid.jsonl", range(20, 25))
    lines, done = drive(2, tmp_path / "run", other=str(other))
    assert lines == []
    assert "another data set than process 0" in done.stderr


@pytest.mark.long
def test_the_others_end_when_one_is_killed(folder, tmp_path):
    out = tmp_path / "run"
    words = [str(LAUNCH), "-n", "2", "--", *command(folder, out, "--set", "train.epochs=1000")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=environment(), text=True, **pipes) as process:
        deadline = time.monotonic() + 120
        while not (out / FILE).is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        listed = subprocess.run(
            ["pgrep", "-f", str(out)], capture_output=True, text=True, check=True
        )
        os.kill(max(int(p) for p in listed.stdout.split()), signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
    assert "another process of the run is gone" in said
    assert "--resume" in said
    assert load_checkpoint(out).state["progress"]["step"] >= 2
