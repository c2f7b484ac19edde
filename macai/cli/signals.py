"""Ctrl-C and SIGTERM, for runs that can stop after the step at hand and go on later."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHOW_CURSOR = b"\x1b[?25h"  # which a live bar hides


@contextmanager
def stop_on_signal(at_once: Callable[[], None]) -> Iterator[Callable[[], int | None]]:
    """Turn the first Ctrl-C or SIGTERM into a request, which the function yielded returns.

    A second one calls `at_once` and ends the process, where an exception would wait for what is
    being computed: what is on disk is whole all the same.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        # Not print: the signal may have come in the middle of one, which Python refuses.
        if received:
            os.write(2, SHOW_CURSOR if os.isatty(2) else b"")
            at_once()
            os._exit(128 + number)
        received.append(number)
        os.write(2, b"stopping after this step; once more to stop at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
