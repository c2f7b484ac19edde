"""On Linux, freed memory that stays with the process, for the next step needs it again.

MLX's CPU backend takes each array from malloc. glibc hands large ones back to the system when they
are freed, and the kernel clears every page anew: a seventh of the time of a training step.
"""

import ctypes
import sys

# From <malloc.h>; glibc's manual, "Malloc Tunable Parameters".
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MOST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more on a 64-bit machine
_KEPT_BYTES = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Have malloc reuse what was freed; return whether this C library can be told so."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD),
        (_M_ARENA_MAX, 1),  # those of other threads give memory back whatever the threshold is
    )
    return all(mallopt(name, value) == 1 for name, value in settings)


def give_back_freed_memory() -> None:
    """Hand what was freed, wherever it lies, back to the system: the next step needs less."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
