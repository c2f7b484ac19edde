"""How many processors other programs take meanwhile: what makes a measurement noisy."""

import os
import sys
import time
from pathlib import Path


class Others:
    """Counts between two calls; Linux only."""

    def __init__(self) -> None:
        self._before = self._now()

    def __call__(self, own_seconds: float) -> float | None:
        """Return the processors that others had on average since the last call, or None.

        Args:
            own_seconds: Processor time meanwhile of the processes that are not others, but this.
        """
        now = self._now()
        if now is None or self._before is None:
            return None
        (time_now, busy_now, mine_now), (time_then, busy_then, mine_then) = now, self._before
        self._before = now
        elapsed = time_now - time_then
        busy = busy_now - busy_then - (mine_now - mine_then) - own_seconds
        return max(0.0, busy / elapsed) if elapsed > 0.05 else None

    def _now(self) -> tuple[float, float, float] | None:
        if sys.platform != "linux":
            return None
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        ticks = [int(field) for field in fields]
        # user, nice, system, irq, softirq, steal: see proc(5).
        busy = sum(ticks[place] for place in (0, 1, 2, 5, 6, 7))
        return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()
