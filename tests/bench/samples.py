"""Reports made of drawn samples: what `macai bench` would write, without measuring."""

import copy
import json
import math
import random
from typing import Any

CONTEXTS = (32, 64, 128, 256, 512)


def figure(name: str, context: int, values: list[float], unit: str = "tokens/s") -> dict[str, Any]:
    """Return a figure of generation."""
    return {
        "id": f"generate/tiny/{name}/context={context}",
        "section": "generate",
        "name": name,
        "subject": "tiny",
        "unit": unit,
        "better": "higher" if unit == "tokens/s" else "lower",
        "parameters": {"context": context},
        "values": values,
    }


def report(
    seed: int,
    *,
    spread: float = 0.02,
    slower: float = 1.0,
    machine: float = 1.0,
    drift: float = 0.0,
    rounds: int = 8,
    probed: bool = True,
) -> dict[str, Any]:
    """Return a report of 35 figures.

    Args:
        seed: Of the samples.
        spread: Of their logarithms; now and then one is interrupted as well, for a third more.
        slower: What decoding takes, as a multiple.
        machine: What everything takes, the probes too.
        drift: How much a random walk moves from one round to the next, for all figures together.
        rounds: Samples of a figure.
        probed: Whether the machine's own speed was measured.
    """
    draw = random.Random(seed)
    walk = [0.0]
    for _ in range(rounds - 1):
        walk.append(walk[-1] + draw.gauss(0, drift))
    figures = []

    def samples(level: float, moment: float = 1.0) -> list[float]:
        found = []
        for step in walk:
            slow = _slow(draw, spread)
            found.append(level / (slow * machine * moment) * (2.718281828 ** (-step)))
        return found

    for context in CONTEXTS:
        for name in ("prefill", "decode", "score", "embed"):
            moment = slower if name == "decode" else 1.0
            figures.append(figure(name, context, samples(1000.0 + context, moment)))
        for name in ("first token", "load"):
            times = [1 / value for value in samples(10.0)]
            figures.append(figure(name.replace(" ", "-"), context, times, "s"))
        held = [1e9 * (1 + draw.gauss(0, 0.001)) for _ in range(rounds)]
        figures.append(figure("memory", context, held, "bytes"))
    if probed:
        for one in figures:
            one["machine_flops_per_second"] = samples(1e11)
            one["machine_bytes_per_second"] = samples(1e10)
    return {"kind": "macai-bench", "version": 1, "runs": [_run(figures, rounds)]}


def reports_in_turns(
    seed: int, *, spread: float = 0.05, drift: float = 0.1, slower: float = 1.0, rounds: int = 10
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the reports of two versions of 45 figures that took turns, sample by sample.

    Args:
        seed: Of the samples.
        spread: As of `report`, with the same interruptions.
        drift: What the machine slows down by during the run, and by how much it may wander as well.
        slower: What decoding takes in the second, as a multiple.
        rounds: Samples of a figure.
    """
    draw = random.Random(seed)
    sides = _empty_figures(), _empty_figures()
    queue = [(figures[place], figures is sides[1]) for place in range(45) for figures in sides]
    steps, walk = rounds * len(queue), 0.0
    for _ in range(rounds):
        for one, is_second in queue:
            walk += draw.gauss(drift / steps, drift / math.sqrt(steps))
            slow = _slow(draw, spread) * math.exp(walk)
            for key, level in (("flops", 1e11), ("bytes", 1e10)):
                speed = level / (_slow(draw, spread) * math.exp(walk))
                one.setdefault(f"machine_{key}_per_second", []).append(speed)
            if one["name"] == "decode" and is_second:
                slow *= slower
            level = {"tokens/s": 1000 / slow, "s": 0.1 * slow}
            one["values"].append(level.get(one["unit"], 1e9 * (1 + draw.gauss(0, 0.001))))
        queue.reverse()
    made = [{"kind": "macai-bench", "version": 1, "runs": [_run(f, rounds)]} for f in sides]
    for one in made:
        one["runs"][0]["settings"]["beside"] = "0123456789abcdef"
    return made[0], made[1]


def _empty_figures() -> list[dict[str, Any]]:
    rates = ["prefill", "decode", *(f"speed {k}" for k in range(8))]
    units = dict.fromkeys(rates, "tokens/s") | dict.fromkeys("abcd", "s") | {"memory": "bytes"}
    return [figure(name, c, [], unit) for c in CONTEXTS[:3] for name, unit in units.items()]


def _slow(draw: random.Random, spread: float) -> float:
    """Return what a sample takes, as a multiple: now and then a third more."""
    return 1 + abs(draw.gauss(0, spread)) + (draw.random() < 0.05) / 3


def _run(figures: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    return {
        "date": "2026-11-26",
        "tool": "macai 0.1.0",
        "machine": {
            "system": "macOS 26.1",
            "architecture": "arm64",
            "chip": "Apple M9",
            "cores": 10,
            "memory_bytes": 34359738368,
        },
        "versions": {"macai": "0.1.0", "mlx": "0.32.4", "numpy": None},
        "settings": {"quick": True, "rounds": rounds, "complete": True},
        "commands": ["macai bench generate --quick --model tiny"],
        "figures": figures,
    }


def whole_report() -> dict[str, Any]:
    """Return a report with every member that there is."""
    made = copy.deepcopy(report(1))
    run = made["runs"][0]
    first = run["figures"][1]
    first |= {"limit": 2000.0, "bound": "memory", "flops": 2.7e8, "bytes": 2.7e8}
    first["seconds"] = [float(k) for k in range(8)]
    first["others"] = [0.5] * 7 + [None]
    run["machine"]["backend"] = "MLX with Metal"
    run["settings"]["seconds"] = 240.0
    run["settings"]["beside"] = "00ff00ff00ff00ff"
    run["speed"] = {
        "dtype": "float16",
        "flops_per_second": 1e13,
        "bytes_per_second": 2e11,
        "others": 0.4,
    }
    run["sustained"] = [
        {"figure": first["id"], "seconds": [float(k) for k in range(60)], "values": [1e3] * 60}
    ]
    run["placement"] = [
        {
            "subject": "tiny",
            "function": "decode",
            "units": "cpuAndNeuralEngine",
            "operations": {"cpu": 3, "neuralEngine": 400},
        }
    ]
    run["energy"] = [{"figure": first["id"], "watts": {"cpu": 1.5, "gpu": 8.0}, "joules": 0.02}]
    run["absent"] = [{"what": "image", "why": "no --image-model was given"}]
    json.dumps(made, allow_nan=False)
    return made
