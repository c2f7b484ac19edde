"""Tables of 16 values for fp16 weights: macai's search, and coremltools' k-means palettizer.

    /path/to/oracle/bin/python benchmarks/bench_palettize.py [--bits 4] [--group 16] [--rounds 3]

Run where scikit-learn is, which coremltools wants for groups of fewer than 10,000 weights. Prints
one JSON line: for one table and for tables of groups of rows, seconds for a million weights
(medians of alternating rounds), their ratio, and macai's squared error over coremltools'.
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from macai.bench.machine import machine
from macai.coreml.palettize import palettize


def _peer(weight: np.ndarray, bits: int, group: int | None) -> np.ndarray:
    """Return what coremltools makes of a weight, float32."""
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    packed = palettize_weights.grouped_channelwise_compress(weight, "KMEANS", bits, 0, group or 0)
    tables = packed.lut.reshape(len(packed.lut), -1).astype(np.float16).astype(np.float32)
    rows = np.arange(weight.shape[0]) // (weight.shape[0] // len(tables))
    return tables[rows[:, None], packed.indices]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--bits", type=int, default=4)
    options.add_argument("--group", type=int, default=16)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--shape", type=int, nargs=2, default=(576, 1536))
    chosen = options.parse_args()
    rng = np.random.default_rng(0)
    spread = np.exp(0.3 * rng.standard_normal((chosen.shape[0], 1)))
    weight = (0.04 * spread * rng.standard_normal(chosen.shape)).astype(np.float16)
    result: dict[str, Any] = {"bits": chosen.bits, "shape": list(weight.shape)}
    for group in (None, chosen.group):
        seconds: dict[str, list[float]] = {"macai": [], "coremltools": []}
        errors = {}
        for _ in range(chosen.rounds):
            for name in seconds:
                began = time.perf_counter()
                if name == "macai":
                    dense = palettize(weight, bits=chosen.bits, group=group).dense()
                else:
                    dense = _peer(weight, chosen.bits, group)
                seconds[name].append(time.perf_counter() - began)
                errors[name] = float(np.square(dense - weight.astype(np.float32)).sum())
        ours, theirs = (statistics.median(seconds[name]) for name in ("macai", "coremltools"))
        result["one_table" if group is None else f"tables_of_{group}_rows"] = {
            "macai_seconds_a_million": round(ours / weight.size * 1e6, 3),
            "coremltools_seconds_a_million": round(theirs / weight.size * 1e6, 3),
            "ratio": round(theirs / ours, 1),
            "error_over_coremltools": round(errors["macai"] / errors["coremltools"], 6),
        }
    print(json.dumps(result | {"rounds": chosen.rounds, "machine": machine()}))


if __name__ == "__main__":
    main()
