"""The processes that compute a step together: this one, and workers that it starts and ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from threadpoolctl import threadpool_limits

from macai.child import ended
from macai.errors import TrainingError
from macai.train.gradient import Sums
from macai.train.group import Group
from macai.train.job import Board, Made, Work, base_sums
from macai.train.machine import cores
from macai.train.optimizer import joined
from macai.train.rewards import Rewards

HINT = "go on with --resume --set train.workers=1; the last checkpoint is intact"


@dataclass(frozen=True, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection


class Team:
    """Computes steps: part number p of one in process p modulo `job.workers`, this one being 0.

    A context manager: the others start with the first step, and after the block there is none.
    In a group each process has a team, and the parts are dealt to all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        gradient: Callable[[Made, int], Sums],
        job: Work,
        group: Group | None = None,
    ) -> None:
        """Take the model, what computes its gradient here, what the others need, and the group."""
        self._model = model
        self._gradient = gradient
        self._job = job
        self._group = group
        self._threads = max(1, cores() // job.workers)
        self._workers: list[_Worker] = []
        self._board: Board | None = None

    def __enter__(self) -> "Team":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.connection.close()  # it ends at that, whatever it is computing
        for worker in self._workers:
            ended(worker.process)
        self._workers = []

    def __call__(self, parts: Sequence[Any], seed: int) -> Sums:
        """Return the sums over all parts of a step, those of the processes added in their order.

        Raises:
            TrainingError: a worker failed or is gone.
        """
        workers, group = self._job.workers, self._group
        rank, size = (group.rank, group.size) if group else (0, 1)
        dealt = list(enumerate(parts))
        shares = [dealt[rank * workers + n :: size * workers] for n in range(workers)]
        sums = self._own(shares, seed)
        return sums if group is None else _over(group, sums)

    def _own(self, shares: Sequence[Sequence[tuple[int, Any]]], seed: int) -> Sums:
        """Return the sums over the parts of this process and of those it has started."""
        if self._job.workers == 1:
            return self._here(shares[0], seed)
        board = self._board or self._start()
        board.write(0, joined(self._model.trainable_parameters()))
        busy = [(n, w) for n, w in enumerate(self._workers, 1) if shares[n]]
        for number, worker in busy:
            _send(worker, (shares[number], seed))
        with threadpool_limits(self._threads, user_api="blas"):
            sums = self._here(shares[0], seed)
        for number, worker in busy:
            counts = _receive(worker)
            sums += Sums(vector=board.read(number), **counts)
        return sums

    def _here(self, share: Sequence[tuple[int, Any]], seed: int) -> Sums:
        if share:
            return self._gradient(self._job.made(share), seed)
        length = joined(self._model.trainable_parameters()).size  # in a group of more than parts
        return Sums(
            loss=0.0,
            vector=mx.zeros(length),
            learnt_tokens=0,
            real_tokens=0,
            processed_tokens=0,
            peak_memory_bytes=mx.get_peak_memory(),
        )

    def _start(self) -> Board:
        """Start the workers and send them the job; they load the model meanwhile."""
        workers, length = self._job.workers, joined(self._model.trainable_parameters()).size
        file = Board.file(workers, length)
        try:
            self._board = Board(file, workers, length)
            for _ in range(1, workers):
                self._workers.append(_spawn(file, self._threads))
        finally:
            os.close(file)
        expected = base_sums(self._model)
        for number, worker in enumerate(self._workers, 1):
            _send(worker, (self._job, number, expected))
        return self._board


def _over(group: Group, sums: Sums) -> Sums:
    """Return the sums over all processes of a group."""
    group.agree()
    names = ("learnt_tokens", "real_tokens", "processed_tokens", "peak_memory_bytes")
    counts = group.counts([getattr(sums, name) for name in names])
    return Sums(
        loss=group.number(sums.loss),
        vector=group.sum(sums.vector),
        **dict(zip(names, counts, strict=True)),
        rewards=_rewards_over(group, sums.rewards),
    )


def _rewards_over(group: Group, rewards: Rewards | None) -> Rewards | None:
    (some,) = group.counts([rewards is not None])
    if not some:
        return None
    own = rewards or Rewards.none()
    counts = ("chosen_answers", "rejected_answers", "right", "pairs")
    sums = group.counts([getattr(own, name) for name in counts])
    return Rewards(
        chosen=group.number(own.chosen),
        rejected=group.number(own.rejected),
        **dict(zip(counts, sums, strict=True)),
    )


def _spawn(file: int, threads: int) -> _Worker:
    """Start a process with this one's modules, and one end of a connection."""
    ours, theirs = socket.socketpair()
    path = os.pathsep.join(str(Path(folder).absolute()) for folder in sys.path)
    with theirs, _held_signals():
        process = subprocess.Popen(
            # -P: no folder that happens to be the current one
            [sys.executable, "-P", "-m", "macai.train.worker", str(theirs.fileno()), str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), file),
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": str(threads)},
        )
    return _Worker(process, Connection(ours.detach()))


@contextmanager
def _held_signals() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM: a new process inherits that until it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(worker: _Worker, message: Any) -> None:
    try:
        worker.connection.send(message)
    except OSError as e:
        raise _gone(worker) from e


def _receive(worker: _Worker) -> dict[str, Any]:
    try:
        answer = worker.connection.recv()
    except (EOFError, OSError) as e:
        raise _gone(worker) from e
    if isinstance(answer, str):
        raise TrainingError(f"a worker process failed: {answer}", hint=HINT)
    return answer


def _gone(worker: _Worker) -> TrainingError:
    code = ended(worker.process)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    memory = "memory ran out? " if code == -signal.SIGKILL else ""
    return TrainingError(f"a worker process {how}", hint=memory + HINT)
