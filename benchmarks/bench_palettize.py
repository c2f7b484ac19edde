"""Tables of 16 values for fp16 weights: macai's search, and coremltools' k-means palettizer.

    python -m benchmarks.bench_palettize [--bits 4] [--group 16] [--rounds 3]

Run where scikit-learn is, which coremltools wants for groups of fewer than 10,000 weights. Gives,
for one table and for tables of groups of rows, seconds for a million weights and the squared error,
and the ratio of both to coremltools'.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from benchmarks.harness import in_turns, tell
from macai.coreml.palettize import palettize


def _peer(weight: np.ndarray, bits: int, group: int | None) -> np.ndarray:
    """Return what coremltools makes of a weight, float32."""
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    packed = palettize_weights.grouped_channelwise_compress(weight, "KMEANS", bits, 0, group or 0)
    tables = packed.lut.reshape(len(packed.lut), -1).astype(np.float16).astype(np.float32)
    rows = np.arange(weight.shape[0]) // (weight.shape[0] // len(tables))
    return tables[rows[:, None], packed.indices]


def _ours(weight: np.ndarray, bits: int, group: int | None) -> np.ndarray:
    """Return what macai makes of a weight, float32."""
    return palettize(weight, bits=bits, group=group).dense()


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

    def timed(dense: Callable[[], np.ndarray]) -> Mapping[str, float]:
        began = time.perf_counter()
        made = dense()
        seconds = (time.perf_counter() - began) / weight.size * 1e6
        error = float(np.square(made - weight.astype(np.float32)).sum())
        return {"seconds_a_million": seconds, "squared_error": error}

    for group in (None, chosen.group):
        sides = {
            "macai": partial(timed, partial(_ours, weight, chosen.bits, group)),
            "coremltools": partial(timed, partial(_peer, weight, chosen.bits, group)),
        }
        kind = "one table" if group is None else f"tables of {group} rows"
        measured = in_turns(sides, chosen.rounds)
        tell(f"palettize, {kind}", measured, to="coremltools", shape=list(weight.shape))


if __name__ == "__main__":
    main()
