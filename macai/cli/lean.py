"""Importing what a command needs, and not what that would import beside it."""

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any

_UNUSED = ("torch", "tensorflow", "jax")


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Let what is imported meanwhile find no torch, TensorFlow and JAX, unless they are here now.

    coremltools and transformers import them where they are installed, which takes seconds and
    200 MB, and macai asks nothing of them. Both go without for the rest of the process, so this is
    for a command that imports them first, not for a library. Python looks for no cycles meanwhile:
    a quarter of the time of importing.
    """
    absent: Any = None
    hidden = [name for name in _UNUSED if name not in sys.modules]
    collects = gc.isenabled()
    gc.disable()
    sys.modules.update(dict.fromkeys(hidden, absent))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collects:
            gc.enable()
