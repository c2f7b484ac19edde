"""Watts while something runs, by Apple's `powermetrics`; it needs macOS and the right to use it.

Written to its manual and to what others print of it on Apple silicon ("CPU Power: 812 mW"). Not run
by us: there is no Mac here.
"""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SECONDS = 4.0
"""Of work, to see its watts."""
_LINE = re.compile(r"^(CPU|GPU|ANE) Power: (\d+(?:\.\d+)?) mW", re.MULTILINE)
_NAMES = {"CPU": "cpu", "GPU": "gpu", "ANE": "neuralEngine"}
_COMMAND = (
    *("sudo", "-n", "powermetrics", "--samplers", "cpu_power,gpu_power,ane_power"),
    *("-i", "200", "-n", "0"),
)


def why_no_power() -> str | None:
    """Return why watts cannot be measured, or None if they can."""
    if sys.platform != "darwin":
        return "powermetrics exists on macOS only"
    try:
        once = [*_COMMAND[:-1], "1"]
        result = subprocess.run(once, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"powermetrics cannot be run: {type(e).__name__}"
    if result.returncode or not watts(result.stdout):
        return "powermetrics needs root: run `sudo -v` first"
    return None


def measured_watts(work: Callable[[], None]) -> dict[str, float]:
    """Return the mean watts of CPU, GPU and Neural Engine while `work` runs."""
    with subprocess.Popen(
        _COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            work()
        finally:
            # It runs as root, which this process may not signal: its pipe tells it to end.
            subprocess.run(["sudo", "-n", "kill", str(process.pid)], check=False)
        assert process.stdout is not None
        return watts(process.stdout.read())


def energy(
    sample: Callable[[], float],
    figure: str,
    *,
    watch: Callable[[Callable[[], None]], dict[str, float]] = measured_watts,
) -> dict[str, Any] | None:
    """Return a report's row about a rate, or None if nothing was said meanwhile.

    Args:
        sample: Measures the rate once.
        figure: Its id.
        watch: Returns the watts while what it is given runs.
    """
    rates: list[float] = []

    def work() -> None:
        began = time.perf_counter()
        while not rates or time.perf_counter() - began < SECONDS:
            rates.append(sample())

    found = watch(work)
    if not found:
        return None
    joules = sum(found.values()) / statistics.median(rates)
    return {"figure": figure, "watts": found, "joules": float(f"{joules:.4g}")}


def watts(text: str) -> dict[str, float]:
    """Return the mean watts of each unit in what powermetrics printed."""
    found: dict[str, list[float]] = {}
    for unit, milliwatts in _LINE.findall(text):
        found.setdefault(_NAMES[unit], []).append(float(milliwatts) / 1000)
    return {unit: sum(values) / len(values) for unit, values in found.items()}
