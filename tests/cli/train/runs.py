"""Runs of seconds, their rows, and what they leave."""

import json
import subprocess
import sys
import time
from pathlib import Path

SUMMARY = {
    "model",
    "adapter",
    "steps",
    "epochs",
    "train_loss",
    "valid_loss",
    "best_valid_loss",
    "real_tokens",
    "processed_tokens",
    "tokens_per_second",
    "workers",
    "peak_memory_bytes",
    "seconds",
}
SMALL = ("--set", "batch.tokens=512", "--set", "adapter.rank=4", "--set", "schedule.warmup_steps=2")
LONG = (*SMALL, "--set", "train.epochs=20", "--set", "train.save_every=0")


def row(question, answer):
    roles = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in roles]}


def write(file, *rows):
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))


def names(path):
    return sorted(p.name for p in path.iterdir())


def logged(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_times(records):
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "peak_memory_bytes")} for r in records
    ]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "macai", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell gives a job
    )


def wait_for_its_group_to_be_gone(process):
    """No other process of a run that has ended is left, a zombie of nobody's aside."""
    deadline = time.monotonic() + 60
    while [p for p in Path("/proc").glob("[0-9]*/stat") if in_group(p, process.pid)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_group(stat, group):
    try:
        state, _, its_group, *_ = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return state != "Z" and int(its_group) == group


def wait_for_steps(process, out, count):
    """Return once the run in `out` has logged `count` steps."""
    deadline = time.monotonic() + 300  # machines are slow at times
    log = out / "metrics.jsonl"
    while not log.is_file() or log.read_text().count('"loss"') < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
