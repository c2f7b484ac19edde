"""Reports made of drawn samples: what `macai bench` would write, without measuring."""

import copy
import json
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
            slow = 1 + abs(draw.gauss(0, spread)) + (draw.random() < 0.05) / 3
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
