"""What a whole process costs: its time, its processor time, its peak memory."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LOOK_SECONDS = 0.05


class Run(NamedTuple):
    """Of a process: wall and CPU seconds, its peak resident memory in bytes, what it printed.

    On Linux the peak is of it and the processes that it started together, as often as they were
    looked at; elsewhere its own alone.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def measure(command: list[str]) -> Run:
    """Run a process to its end.

    Linux counts in its peak what it was forked from: the process that measures must be small.

    Raises:
        SystemExit: it failed; the end of what it said is the message.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    family = _Family(process.pid)
    family.start()
    with process.stdout, process.stderr:
        said = process.stdout.read()  # one line: less than a pipe holds
        complained = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    together = family.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{command[:4]}: {complained.decode()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = time.perf_counter() - began
    cpu = usage.ru_utime + usage.ru_stime
    return Run(seconds, cpu, max(usage.ru_maxrss * unit, together), said.decode())


class _Family(threading.Thread):
    """Adds up, again and again, what a process and those that it started have in memory."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._peak = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if others := _descendants(self._pid):
                self._peak = max(self._peak, sum(map(_resident_bytes, [self._pid, *others])))

    def stop(self) -> int:
        """Return the most that was seen, in bytes; 0 where there were no other processes."""
        self._over.set()
        self.join()
        return self._peak


def _descendants(pid: int) -> list[int]:
    """Return the processes below one, as far as Linux lists them; elsewhere none.

    One that has its parent's command line has yet to become another program, and until then its
    memory is its parent's.
    """
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # gone meanwhile
            found += map(int, file.read_text(encoding="ascii").split())
    own = _command_line(pid)
    found = [child for child in found if _command_line(child) != own]
    return [*found, *(lower for child in found for lower in _descendants(child))]


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _resident_bytes(pid: int) -> int:
    with suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0
