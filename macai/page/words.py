"""Numbers and names as people read them: the same in every report."""

from collections.abc import Mapping
from typing import Any

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(value: float, unit: str) -> str:
    """Return a value with its unit: "1.25 GB", "840 ms", "27.3 tokens/s"."""
    if unit == "bytes":
        return scaled(value, "B")
    if unit == "s" and value < 1:
        return f"{digits(value * 1e3)} ms"
    return f"{digits(value)} {unit}"


def interval(low: float, high: float, unit: str) -> str:
    """Return two ends, with the unit once where they share it: "1.20 to 1.25 GB"."""
    first, second = amount(low, unit), amount(high, unit)
    number, _, own = first.partition(" ")
    return f"{number if own == second.partition(' ')[2] else first} to {second}"


def scaled(value: float, unit: str) -> str:
    """Return a value with the prefix that leaves one to three digits before the point."""
    for factor, prefix in _PREFIXES:
        if value >= factor:
            return f"{digits(value / factor)} {prefix}{unit}"
    return f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """Return three significant digits, never as a power of ten."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 or value == 0 else f"{value:.3g}"


def plain(value: object) -> str:
    """Return a number without a needless fraction, or the word itself."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def machine_line(run: Mapping[str, Any]) -> str:
    """Return one line about the machine."""
    machine = run["machine"]
    parts = [
        machine.get("chip") or machine["architecture"],
        f"{machine['cores']} cores",
        f"{machine['memory_bytes'] / 2**30:.0f} GiB",
        machine["system"],
    ]
    return ", ".join(parts)
