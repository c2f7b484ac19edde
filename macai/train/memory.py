"""How much memory MLX may keep and hold fast during a run, where it computes on a Mac's GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

# Of what Metal recommends for a process to use. Wired memory is never swapped out: with all of it
# taken, other programs have none, and Macs were seen to hang.
WIRED_SHARE = 0.8
CACHE_SHARE = 0.25  # freed arrays kept for the next step, which has one of a few shapes


@contextmanager
def limited_memory() -> Iterator[None]:
    """Meanwhile, keep MLX's wired memory and its cache below the recommended working set."""
    if not mx.metal.is_available():
        yield
        return
    recommended = int(mx.device_info()["max_recommended_working_set_size"])
    wired = mx.set_wired_limit(int(WIRED_SHARE * recommended))
    cache = mx.set_cache_limit(int(CACHE_SHARE * recommended))
    try:
        yield
    finally:
        mx.synchronize()  # what still runs relies on memory being wired
        mx.set_cache_limit(cache)
        mx.set_wired_limit(wired)
