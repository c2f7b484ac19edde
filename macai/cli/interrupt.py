"""Signals that end a command, kept where an exception would be lost: in imports and finalisers."""

import signal
import sys
from types import FrameType

AGAIN_SECONDS = 0.05
"""After which a signal that came at such a place is tried again."""
_IMPORTS = "<frozen importlib."

_waiting = signal.SIGINT


def end_on_signal() -> None:
    """Have SIGINT and SIGTERM raise KeyboardInterrupt and SystemExit, but where they would be lost.

    Libraries catch whatever is raised while they are imported and go on without what they wanted,
    or stay half imported; Python prints what a `__del__` raises and goes on.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGALRM, lambda _, frame: _end(_waiting, frame))


def _end(number: int, frame: FrameType | None) -> None:
    if _is_lost(frame):
        global _waiting
        _waiting = signal.Signals(number)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        sys.exit(128 + number)  # an exception, so that temporary files and children are cleaned up


def _is_lost(frame: FrameType | None) -> bool:
    """Return whether an exception would not come out of a frame."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename.startswith(_IMPORTS):
            return True
        frame = frame.f_back
    return False
