"""What a whole process costs: its time, its processor time, its peak memory."""

import os
import subprocess
import sys
import time
from typing import NamedTuple


class Run(NamedTuple):
    """Of a process: wall and CPU seconds, its peak resident memory in bytes, what it printed."""

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
    with process.stdout, process.stderr:
        said = process.stdout.read()  # one line: less than a pipe holds
        complained = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{command[:4]}: {complained.decode()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = time.perf_counter() - began
    cpu = usage.ru_utime + usage.ru_stime
    return Run(seconds, cpu, usage.ru_maxrss * unit, said.decode())
