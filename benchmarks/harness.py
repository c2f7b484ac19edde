"""How every comparison is made: in turns, the order reversed each time, ratios by pairs.

A machine has slow minutes. What alternates meets them all, and a ratio within one round leaves most
of them out; the order changes because what comes second finds a warm file cache, or a hot chip.
"""

import json
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from macai.bench.process import Run, measure
from macai.bench.statistics import summarise
from macai.page.machine import machine, versions

HERE = Path(__file__).parent
PEERS = HERE / "peers.toml"

Values = Mapping[str, float]
Sides = Mapping[str, Callable[[], Values]]
"""What is compared, by name: each does its work once, and returns numbers by theirs."""
Measured = dict[str, dict[str, list[float]]]
"""Side, number, a value a round."""


def in_turns(sides: Sides, rounds: int, *, warm_up: int = 0) -> Measured:
    """Let the sides take turns; of each round one value a number, but for the first `warm_up`."""
    found: Measured = {name: {} for name in sides}
    order = list(sides)
    for number in range(rounds + warm_up):
        for name in order:
            values = sides[name]()
            for key, value in values.items() if number >= warm_up else ():
                found[name].setdefault(key, []).append(value)
        order.reverse()
    return found


def process(command: Sequence[str], printed: Callable[[str], Values] = lambda text: {}) -> Values:
    """Run a process as a side: its time, processor time, memory, and what it printed of itself."""
    run: Run = measure(list(command))
    return {
        "seconds": run.seconds,
        "cpu_seconds": run.cpu_seconds,
        "peak_bytes": float(run.peak_bytes),
        **printed(run.output),
    }


def summary(measured: Measured, *, to: str | None = None) -> dict[str, Any]:
    """Return medians with percentiles, and with `to` the ratios of each side to that, by rounds."""
    result: dict[str, Any] = {
        name: {key: _rounded(summarise(values)._asdict()) for key, values in numbers.items()}
        for name, numbers in measured.items()
    }
    ratios: dict[str, Any] = {}
    for name, numbers in measured.items() if to is not None and to in measured else ():
        if name != to:
            ratios[f"{name} / {to}"] = {
                key: _ratio(values, measured[str(to)][key])
                for key, values in numbers.items()
                if key in measured[str(to)]
            }
    return {"sides": result} | ({"ratios": ratios} if ratios else {})


def tell(name: str, measured: Measured, *, to: str | None = None, **facts: Any) -> None:
    """Print one line of JSON on stdout, and a table for people on stderr."""
    rounds = max(len(v) for numbers in measured.values() for v in numbers.values())
    result = {"benchmark": name, "rounds": rounds, **summary(measured, to=to), **facts}
    print(json.dumps(result | {"machine": machine(), "versions": versions()}))
    for side, numbers in result["sides"].items():
        for key, value in numbers.items():
            ends = f"{value['p10']:.4g} to {value['p90']:.4g}"
            print(f"{side:20} {key:24} {value['median']:>10.4g}   {ends}", file=sys.stderr)
    for pair, numbers in result.get("ratios", {}).items():
        for key, value in numbers.items():
            print(f"{pair:20} {key:24} {value['median']:>10.3f}", file=sys.stderr)


def peer_python(name: str) -> str:
    """Return the Python of a peer's own environment, made at first with the versions of peers.toml.

    Raises:
        SystemExit: there is no such peer, or it cannot be installed.
    """
    peers = tomllib.loads(PEERS.read_text(encoding="utf-8"))
    if name not in peers:
        raise SystemExit(f"no peer '{name}' in {PEERS}: {', '.join(peers)}")
    folder = HERE / ".venvs" / name
    python, done = folder / "bin" / "python", folder / "done.txt"
    wanted = "\n".join(peers[name]["install"])
    if not done.is_file() or done.read_text(encoding="utf-8") != wanted:
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "-q", *peers[name]["install"]]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"peer '{name}' could not be installed: {' '.join(command)}")
        done.write_text(wanted, encoding="utf-8")
    return str(python)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    pairs = zip(ours, theirs, strict=True)
    return _rounded(summarise([a / b for a, b in pairs if b])._asdict())


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.5g}") for key, value in values.items()}
