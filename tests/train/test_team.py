"""Steps computed by this process together with others."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.data.batches import Plan, divide
from macai.errors import TrainingError
from macai.models.blas import load_fast_blas
from macai.models.cpu_ops import cpu_ops
from macai.models.load import load_network
from macai.models.lora import add_lora, target_paths
from macai.train.gradient import Gradient
from macai.train.job import Job
from macai.train.loss import _picked
from macai.train.optimizer import joined, put
from macai.train.team import Team
from tests.train.cases import PAD, make_examples

SIZES = ((90, 60), (4, 1), (7, 3), (9, 2), (30, 12))
EXAMPLES = make_examples(*SIZES)
LENGTHS = [e.read_tokens for e in EXAMPLES]
STEP = Plan((0, 1, 2, 3, 4), 96)

pytestmark = pytest.mark.skipif(
    mx.default_device() != mx.cpu, reason="on a GPU one process computes"
)


def job_of(model, folder, *, workers=2, dropout=0.0):
    paths = target_paths(model, ["q_proj", "down_proj"])
    prepare = partial(add_lora, paths=paths, rank=4, alpha=8.0, dropout=dropout)
    options = {"examples": EXAMPLES, "pad_id": PAD, "prefix": 0}
    return Job(workers=workers, model=folder, prepare=prepare, **options)


def team_in(folder, **options):
    """A team around a model in training, with LoRA whose B is not zero; the test enters it."""
    model = load_network(folder)
    job = job_of(model, folder, **options)
    job.prepare(model)
    model.train()
    put(model, mx.random.normal(joined(model.trainable_parameters()).shape, key=mx.random.key(7)))
    put(model, joined(model.trainable_parameters()) * 0.1)
    return Team(model, Gradient(model, _picked), job)


@pytest.fixture(scope="module")
def three(tiny_dir):
    """A team of three processes, for the tests that leave it as it is."""
    with team_in(tiny_dir, workers=3) as team, cpu_ops(team._model):
        yield team


def alone(team, parts, seed=0):
    """The sums of the same parts, all computed here."""
    return Gradient(team._model, _picked)(team._job.made(enumerate(parts)), seed)


def counts(sums):
    return sums.learnt_tokens, sums.real_tokens, sums.processed_tokens


def is_close(a, b):
    return np.abs(np.array(a - b)).max() <= 1e-5 * np.abs(np.array(b)).max()


def test_the_sums_are_those_of_one_process_each_time_and_with_new_parameters(three):
    parts = [*divide(STEP, LENGTHS, 3), Plan((4,), 32)]  # the last one is this process's again
    first, again = three(parts, 0), three(parts, 0)
    assert first.loss == again.loss
    assert mx.array_equal(first.vector, again.vector).item()
    original = joined(three._model.trainable_parameters())
    for factor in (1.0, 1.5):
        put(three._model, original * factor)
        together = three(parts, 0)
        for expected in (alone(three, parts), alone(three, [STEP, parts[-1]])):
            assert together.loss == pytest.approx(expected.loss, rel=1e-5)
            assert is_close(together.vector, expected.vector)
            assert counts(together)[:2] == counts(expected)[:2]
        assert counts(together) == counts(alone(three, parts))
    assert together.loss != pytest.approx(first.loss, rel=1e-3)
    assert together.peak_memory_bytes > mx.get_peak_memory()
    put(three._model, original)


def test_more_workers_than_rows_leave_some_without_work(three):
    for plan in (Plan((4,), 32), Plan((4, 3), 32), STEP):
        parts = divide(plan, LENGTHS, 3)
        assert len(parts) <= min(3, len(plan.rows))
        assert is_close(three(parts, 0).vector, alone(three, [plan]).vector)


def test_one_process_alone_starts_no_other(tiny_dir):
    with team_in(tiny_dir, workers=1) as team, cpu_ops(team._model):
        assert is_close(team([STEP], 0).vector, alone(team, [STEP]).vector)
        assert team._workers == []


def test_dropout_follows_from_the_number_of_a_part_not_from_who_computes_it(tiny_dir):
    parts = [Plan((0,), 96), Plan((4,), 32), Plan((0,), 96)]
    with team_in(tiny_dir, dropout=0.3) as team, cpu_ops(team._model):
        together = team(parts, 5)
        expected = alone(team, parts, 5)
        assert together.loss == pytest.approx(expected.loss, rel=1e-6)
        assert is_close(together.vector, expected.vector)
        assert together.loss != pytest.approx(team(parts, 6).loss, rel=1e-4)


def test_signals_meant_for_the_parent_do_not_end_a_worker_and_the_end_of_the_block_does(tiny_dir):
    parts = divide(STEP, LENGTHS, 2)
    with team_in(tiny_dir) as team:
        team._start()
        (worker,) = team._workers
        for number in (signal.SIGINT, signal.SIGTERM):  # it has hardly begun to start
            worker.process.send_signal(number)
        first = team(parts, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            worker.process.send_signal(number)
        assert team(parts, 0).loss == first.loss
        assert worker.process.poll() is None
    assert worker.process.returncode == 0


def test_a_worker_that_is_killed_in_a_step_ends_the_run_with_one_message(tiny_dir):
    parts = divide(STEP, LENGTHS, 2)
    with team_in(tiny_dir) as team:
        team(parts, 0)
        (worker,) = team._workers
        worker.process.send_signal(signal.SIGSTOP)  # so that it is surely not done
        threading.Timer(0.5, worker.process.kill).start()
        with pytest.raises(TrainingError, match="a worker process was ended by SIGKILL") as caught:
            team(parts, 0)
        assert "memory ran out? go on with --resume --set train.workers=1" in caught.value.hint
        assert worker.process.returncode == -signal.SIGKILL
        with pytest.raises(TrainingError, match="SIGKILL"):
            team(parts, 0)  # now it is gone before anything is sent


def test_a_model_that_is_not_that_of_its_folder_is_noticed(tiny_dir):
    team = team_in(tiny_dir)
    head = team._model.lm_head
    head.weight = head.weight * 1.001
    with team, pytest.raises(TrainingError, match="holds other weights than the model") as caught:
        team(divide(STEP, LENGTHS, 2), 0)
    assert caught.value.message.startswith("a worker process failed: ")


def test_what_fails_in_a_worker_is_reported(tiny_dir, tmp_path):
    team = team_in(tiny_dir)
    team._job = replace(team._job, model=tmp_path)
    with (
        team,
        pytest.raises(TrainingError, match=r"failed: .*: no model\*.safetensors in it"),
    ):
        team(divide(STEP, LENGTHS, 2), 0)


PARENT = """
import sys
from pathlib import Path
import macai.models
from tests.train.test_team import LENGTHS, STEP, divide, team_in

with team_in(Path(sys.argv[1])) as team:
    team(divide(STEP, LENGTHS, 2), 0)
    print(team._workers[0].process.pid, flush=True)
    while True:
        team(divide(STEP, LENGTHS, 2), 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_does_not_outlive_a_parent_that_is_killed(tiny_dir):
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tiny_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    worker = int(parent.stdout.readline())
    assert runs(worker)
    parent.kill()
    assert parent.communicate() == ("", None)
    deadline = time.monotonic() + 60
    while runs(worker):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # whoever inherits it may leave it at that


@pytest.mark.skipif(not load_fast_blas().found, reason="no OpenBLAS to count threads of")
def test_the_cores_are_shared_out_while_a_step_is_computed_and_given_back(three, monkeypatch):
    threads = ctypes.CDLL(str(load_fast_blas().library)).scipy_openblas_get_num_threads
    seen = []

    def watched(*args):
        seen.append(threads())
        return _picked.hidden(*args)

    gradient = Gradient(three._model, replace(_picked, hidden=watched))
    monkeypatch.setattr(three, "_gradient", gradient)
    monkeypatch.setattr(three, "_threads", 3)
    before = threads()
    seen.clear()
    three(divide(STEP, LENGTHS, 3), 0)
    assert (seen, threads()) == ([3], before)
    monkeypatch.setattr("macai.train.team.cores", lambda: 7)
    teams = [Team(three._model, None, replace(three._job, workers=n)) for n in (1, 2, 3, 9)]
    assert [team._threads for team in teams] == [7, 3, 2, 1]
