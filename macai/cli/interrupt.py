"""Signals that end a command, kept while a module is being imported."""

import signal
import sys
from types import FrameType
from typing import NoReturn

AGAIN_SECONDS = 0.05
"""After which a signal that came in the middle of an import is tried again."""
_IMPORTS = "<frozen importlib."

_waiting = signal.SIGINT


def end_between_imports() -> None:
    """Have SIGINT and SIGTERM raise KeyboardInterrupt and SystemExit, but not within an import.

    Libraries catch whatever is raised while they are imported and go on without what they wanted,
    or stay half imported: the signal would be lost, or the error be another one.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGALRM, lambda _, frame: _end(_waiting, frame))


def _end(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        global _waiting
        _waiting = signal.Signals(number)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        return
    _raise(number)


def _raise(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)  # an exception, so that temporary files and children are cleaned up


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTS):
            return True
        frame = frame.f_back
    return False
