"""A run that is stopped, killed, and gone on with."""

import json
import os
import shutil
import signal
import time

import mlx.core as mx
import pytest

from macai.catalog import find_recipe
from macai.cli.train import run_recipe
from macai.models.adapter import WEIGHTS
from macai.recipe import load_recipe
from macai.train.checkpoint import FILE
from tests.cli.train.runs import (
    LONG,
    SMALL,
    SUMMARY,
    logged,
    names,
    row,
    start,
    wait_for_its_group_to_be_gone,
    wait_for_steps,
    without_times,
    write,
)
from tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def whole_run(folder, tmp_path_factory):
    """A long run nothing stops, and its data."""
    place = tmp_path_factory.mktemp("whole")
    data, out = place / "rows.jsonl", place / "run"
    write(data, *(row(f"Light {n} in the {'big ' * (n % 7)}room", f"on {n}") for n in range(40)))
    changes = [f"model={json.dumps(str(folder))}", *LONG[1::2]]
    run_recipe(load_recipe(find_recipe("lora"), changes), data=data, out=out)
    return data, out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_and_equals_the_uninterrupted_one(
    macai, folder, whole_run, tmp_path, number, code
):
    data, whole = whole_run
    out = tmp_path / "run"
    command = ("--model", folder, "--data", data, "--out", out, *LONG, "--json")
    process = start(*command)
    wait_for_steps(process, out, 10)
    process.send_signal(number)
    printed, err = process.communicate(timeout=60)
    assert (process.returncode, printed) == (code, "")
    assert "stopping after this step; once more to stop at once" in err
    stopped = len([r for r in logged(out) if "loss" in r])
    total = len([r for r in logged(whole) if "loss" in r])
    assert 10 <= stopped < total
    assert f"stopped after step {stopped}; go on with the same command and --resume" in err
    assert (out / FILE).is_file()
    result = macai("train", *command, "--resume")
    assert result.code == 0
    assert f"resumed at step {stopped}" in result.err
    assert json.loads(result.out)["steps"] == total
    assert without_times(logged(out)) == without_times(logged(whole))
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    last, expected = (mx.load(str(folder / FILE)) for folder in (out, whole))
    assert last.keys() == expected.keys()
    assert all(mx.array_equal(value, expected[name]) for name, value in last.items())


def test_a_finished_run_resumed_is_the_same_run(macai, folder, whole_run, tmp_path):
    data, whole = whole_run
    out = shutil.copytree(whole, tmp_path / "run")
    command = ("--model", folder, "--data", data, "--out", out, *LONG, "--json")
    result = macai("train", *command, "--resume")
    assert result.code == 0
    assert json.loads(result.out).keys() == SUMMARY
    assert logged(out) == logged(whole)
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            ["--set", "optimizer.learning_rate=1e-3"],
            "recipe\n  optimizer.learning_rate = 0.0002 there, 0.001 here",
        ),
        (["--data", "other"], "data set"),
        (["--model", "other"], "base model"),
    ],
)
def test_another_run_is_not_resumed(macai, folder, whole_run, tmp_path, change, what):
    data, whole = whole_run
    out = shutil.copytree(whole, tmp_path / "run")
    if change == ["--data", "other"]:
        write(tmp_path / "rows.jsonl", *(row(f"Light {n}", "on") for n in range(9)))
        change = ["--data", tmp_path / "rows.jsonl"]
    if change == ["--model", "other"]:
        change = ["--model", tiny_model_dir(tmp_path / "other", seed=5)]
    result = macai(
        "train", "--model", folder, "--data", data, "--out", out, *LONG, "--resume", *change
    )
    assert (result.code, result.out) == (1, "")
    assert f"its run had another {what}" in result.err
    assert logged(out) == logged(whole)


def start_with_a_step_of_seconds(folder, data, out):
    """Start a run and return once its only step is being computed."""
    write(data, *(row("word " * 200, f"on {n}") for n in range(200)))
    process = start(
        "--model", folder, "--data", data, "--out", out, "--set", "batch.tokens=1000000",
        "--set", "train.workers=2",
    )  # fmt: skip
    assert "rows to learn from" in process.stderr.readline()
    wait_for_steps(process, out, 0)
    return process


def test_a_second_interrupt_stops_at_once_and_leaves_nothing(folder, data, tmp_path):
    out = tmp_path / "run"
    process = start_with_a_step_of_seconds(folder, data, out)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the second worker gets it too
    assert "once more to stop at once" in process.stderr.readline()
    assert logged(out) == []
    os.killpg(process.pid, signal.SIGINT)
    printed, err = process.communicate(timeout=60)
    assert (process.returncode, printed, err) == (130, "", "")
    assert not out.exists()  # not even the step at hand was waited for
    wait_for_its_group_to_be_gone(process)


def test_a_second_interrupt_leaves_what_was_saved(folder, data, tmp_path):
    out = tmp_path / "run"
    process = start("--model", folder, "--data", data, "--out", out, *LONG)
    wait_for_steps(process, out, 1)
    deadline = time.monotonic() + 300
    while not (out / FILE).is_file():  # after the first epoch
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert {"adapter_config.json", "recipe.toml", "metrics.jsonl", FILE} <= set(names(out))


def test_a_run_killed_before_it_saved_anything_needs_no_force_to_be_replaced(
    macai, folder, data, tmp_path
):
    out = tmp_path / "run"
    process = start_with_a_step_of_seconds(folder, data, out)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert names(out) == [
        "adapter_config.json", "metrics.jsonl", "recipe.toml", "rows", "run.json"
    ]  # fmt: skip
    assert macai("report", out).out == f"report: {out}/report.html\n"
    assert "0 of" in (out / "report.html").read_text()
    write(data, *(row(f"Light {n}", "on") for n in range(8)))
    result = macai("train", "--model", folder, "--data", data, "--out", out, *SMALL)
    assert result.code == 0, result.err
    assert FILE in names(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_run_stops_it_after_the_step(folder, data, tmp_path, number):
    out = tmp_path / "run"
    process = start(
        "--model", folder, "--data", data, "--out", out, *LONG, "--set", "train.workers=2"
    )
    assert "2 processes share each step" in process.stderr.readline()
    wait_for_steps(process, out, 3)
    os.killpg(process.pid, number)
    printed, err = process.communicate(timeout=60)
    assert (process.returncode, printed) == (128 + number, "")
    stopped = len([r for r in logged(out) if "loss" in r])
    assert err.count("stopping after this step; once more to stop at once\n") == 1
    assert f"stopped after step {stopped}; go on with the same command and --resume\n" in err
    assert "Traceback" not in err
    assert (out / FILE).is_file()
    wait_for_its_group_to_be_gone(process)
