"""Packages run in float32 and in float16 at the same time: alone, one leaves cores idle."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from macai.coreml.sd.runner import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

T = TypeVar("T")


def in_all(run: Callable[[Precision, threading.Event], T]) -> dict[Precision, T]:
    """Return what a function gives in each precision, all of them run at once.

    Args:
        run: Called in a thread of its own with a precision, and with an event for Runner.run that
            is set when another precision failed or the program is interrupted.
    """
    stop = threading.Event()
    blas = ThreadpoolController().select(user_api="blas")
    threads = max((library["num_threads"] for library in blas.info()), default=1)
    # Threads of a BLAS wait for its next product by spinning, on cores that others need.
    with (
        blas.limit(limits=max(1, threads // len(PRECISIONS))),
        ThreadPoolExecutor(len(PRECISIONS)) as pool,
    ):
        try:
            running = {precision: pool.submit(run, precision, stop) for precision in PRECISIONS}
            for ended in as_completed(running.values()):
                ended.result()
                blas.limit(limits=threads)  # the last one has all cores
            return {precision: one.result() for precision, one in running.items()}
        except BaseException:
            stop.set()
            raise
