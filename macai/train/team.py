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

import mlx.nn as nn

from macai.errors import TrainingError
from macai.models.blas import blas_threads
from macai.train.gradient import Sums
from macai.train.job import Board, Made, Work, base_sums
from macai.train.machine import cores
from macai.train.optimizer import joined

HINT = "go on with --resume --set train.workers=1; the last checkpoint is intact"
END_SECONDS = 10.0  # for a process to be gone once its connection is closed


@dataclass(frozen=True, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection


class Team:
    """Computes steps: part number p of one in process p modulo `job.workers`, this one being 0.

    A context manager: the others start with the first step, and after the block there is none.
    """

    def __init__(self, model: nn.Module, gradient: Callable[[Made, int], Sums], job: Work) -> None:
        """Take the model, what computes its gradient here, and what the others need."""
        self._model = model
        self._gradient = gradient
        self._job = job
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
            _end(worker.process)
        self._workers = []

    def __call__(self, parts: Sequence[Any], seed: int) -> Sums:
        """Return the sums over all parts of a step, those of the processes added in their order.

        Raises:
            TrainingError: a worker failed or is gone.
        """
        shares = [list(enumerate(parts))[n :: self._job.workers] for n in range(self._job.workers)]
        if self._job.workers == 1:
            return self._gradient(self._job.made(shares[0]), seed)
        board = self._board or self._start()
        board.write(0, joined(self._model.trainable_parameters()))
        busy = [(n, w) for n, w in enumerate(self._workers, 1) if shares[n]]
        for number, worker in busy:
            _send(worker, (shares[number], seed))
        with blas_threads(self._threads):
            sums = self._gradient(self._job.made(shares[0]), seed)
        for number, worker in busy:
            counts = _receive(worker)
            sums += Sums(vector=board.read(number), **counts)
        return sums

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
    code = _end(worker.process)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    memory = "memory ran out? " if code == -signal.SIGKILL else ""
    return TrainingError(f"a worker process {how}", hint=memory + HINT)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process that has reason to end, and return its exit code."""
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:  # a stopped one, say
        process.kill()
        return process.wait()
