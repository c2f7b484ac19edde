"""Tables of 2^bits values for weights: macai's search, and coremltools' k-means palettizer.

    python -m benchmarks.bench_palettize [--bits 6] [--group 0] [--dtype float16] [--rounds 3]
                                         [--shape 1280 5120] [--peer-python PYTHON]

coremltools has an environment of its own (peers.toml), where its two ways are: an exact one for
10,000 float16 weights and more, and scikit-learn's for float32 and for fewer. With a group so many
rows have a table; else all of them have one. Gives wall and CPU seconds for a million weights and
the ratio of signal to error in dB, on normal weights whose rows have different spreads.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Sides, in_turns, peer_python, tell
from macai.bench.process import measure
from macai.coreml.palettize import palettize

_PEER = """
import json, sys, time
import numpy as np
from coremltools.optimize.coreml._quantization_passes import palettize_weights
weight, bits, group = np.load(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
began, cpu_began = time.perf_counter(), time.process_time()
packed = palettize_weights.grouped_channelwise_compress(weight, "KMEANS", bits, 0, group)
tables = packed.lut.reshape(len(packed.lut), -1).astype(np.float16).astype(np.float32)
rows = np.arange(weight.shape[0]) // (weight.shape[0] // len(tables))
dense = tables[rows[:, None], packed.indices]
print(json.dumps([time.perf_counter() - began, time.process_time() - cpu_began]))
np.save(sys.argv[2], dense)
"""


def main() -> None:
    """Print one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("--bits", type=int, default=6)
    options.add_argument("--group", type=int, default=0)
    options.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--shape", type=int, nargs=2, default=(1280, 5120))
    options.add_argument("--peer-python")
    chosen = options.parse_args()
    rng = np.random.default_rng(0)
    spread = np.exp(0.3 * rng.standard_normal((chosen.shape[0], 1)))
    weight = (0.04 * spread * rng.standard_normal(chosen.shape)).astype(chosen.dtype)

    def told(dense: np.ndarray, seconds: float, cpu_seconds: float) -> Mapping[str, float]:
        exact = weight.astype(np.float64)
        error = float(np.square(dense - exact).sum())
        signal = float(np.square(exact).sum())
        return {
            "seconds_a_million": seconds / weight.size * 1e6,
            "cpu_seconds_a_million": cpu_seconds / weight.size * 1e6,
            "snr_db": 10 * float(np.log10(signal / error)),
        }

    def ours() -> Mapping[str, float]:
        began, cpu_began = time.perf_counter(), time.process_time()
        dense = palettize(weight, bits=chosen.bits, group=chosen.group or None).dense()
        return told(dense, time.perf_counter() - began, time.process_time() - cpu_began)

    def theirs(python: str, scratch: Path) -> Mapping[str, float]:
        given, taken = scratch / "weight.npy", scratch / "dense.npy"
        np.save(given, weight)
        asked = [str(given), str(taken), str(chosen.bits), str(chosen.group)]
        run = measure([python, "-c", _PEER, *asked])
        return told(np.load(taken), *json.loads(run.output.splitlines()[-1]))

    python = chosen.peer_python or peer_python("palettize")
    with tempfile.TemporaryDirectory() as scratch:
        sides: Sides = {"macai": ours, "coremltools": partial(theirs, python, Path(scratch))}
        measured = in_turns(sides, chosen.rounds)
    facts = {name: getattr(chosen, name) for name in ("bits", "group", "dtype", "shape")}
    tell("palettize", measured, to="coremltools", **facts)


if __name__ == "__main__":
    main()
