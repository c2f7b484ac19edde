"""Several batches computed at the same time on the CPU backend.

MLX runs one operation after the other there, and only its matrix products use more than one core;
softmax, SiLU and the rest, a third of the time and more, use one. So on a CPU each batch gets a
thread, and each thread its share of the cores for matrix products. A GPU needs none of this.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from macai.models.blas import load_fast_blas, set_blas_threads

MOST = 4  # more threads would make the pieces too small for an efficient matrix product


def worker_count() -> int:
    """Return how many batches to compute at once on this machine: 1 on a GPU."""
    if mx.default_device() != mx.cpu or not load_fast_blas().found:
        return 1
    return min(MOST, len(os.sched_getaffinity(0)))


class Workers:
    """Evaluates arrays in threads; the order of results never depends on their timing."""

    def __init__(self, pool: ThreadPoolExecutor | None) -> None:
        self.pool = pool
        # Building a graph changes the model for a moment (gradients are traced through it), and
        # draws from MLX's random state: one thread at a time.
        self.building = threading.Lock()
        self.cancelled = threading.Event()

    def map(self, build: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield `build(item)`, evaluated, for each item in order."""

        def compute(item: Any) -> Any:
            with self.building:
                result = build(item)
            mx.eval(result)
            return result

        return map(compute, items) if self.pool is None else self.pool.map(compute, items)

    def run(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield `work(item)` for each item in order, where work evaluates and builds as it likes.

        It must leave the model as it is, and call `check` often.
        """
        if self.pool is None:
            yield from map(work, items)
            return
        try:
            yield from self.pool.map(work, items)
        except BaseException:
            self.cancelled.set()  # or Ctrl-C would wait for every thread's last item
            raise

    def check(self) -> None:
        """Raise CancelledError in a thread whose result nobody waits for any more."""
        if self.cancelled.is_set():
            raise CancelledError


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Yield `count` workers; meanwhile they share the cores that matrix products may use."""
    if count == 1:
        yield Workers(None)
        return
    before = set_blas_threads(max(1, len(os.sched_getaffinity(0)) // count))
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="macai-worker") as pool:
            try:
                yield Workers(pool)
            finally:
                # A thread's MLX streams end with it, which may be after Python has joined it; were
                # the process exiting by then, MLX 0.32.4 would abort it. So they end here.
                all_there = threading.Barrier(count)
                list(pool.map(_clear_streams, [all_there] * count))
    finally:
        set_blas_threads(before)


def _clear_streams(all_there: threading.Barrier) -> None:
    all_there.wait()  # so that each thread takes one of these calls
    mx.clear_streams()
