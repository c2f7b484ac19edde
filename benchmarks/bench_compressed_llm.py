"""What schemes of weight compression cost SmolLM2-135M: bits per weight, perplexity, divergence.

    python -m benchmarks.bench_compressed_llm [--schemes int4-32 palette4-16] [--bits 4.5]

Evaluated on what Python packages here say of themselves, and on the text that macai export compares
with; calibrated with the text that comes with macai, or another. Prints one JSON line for each
scheme, rounded to nearest and as an export rounds it (sequential.py), and with --bits one for the
mix that an export chooses.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX

# isort: split
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.catalog import locate_model
from macai.coreml.compress import Compression, Scheme
from macai.coreml.fewer_bits import compress_model, replace_weights
from macai.coreml.matrices import matrix_paths
from macai.coreml.verify import sample_text
from macai.models.arrays import scalar
from macai.models.blas import load_fast_blas
from macai.models.load import LoadedModel, load_model
from macai.page.machine import machine

LENGTH = 512


def texts(loaded: LoadedModel, count: int) -> dict[str, list[mx.array]]:
    """Return the first tokens of some packages' descriptions, and of verify's own text."""
    said = {d.name: d.metadata.get_payload() or "" for d in metadata.distributions()}  # type: ignore[attr-defined]
    ids = [loaded.tokenizer.encode(text[:6000]) for _, text in sorted(said.items())]
    long = [tokens[:LENGTH] for tokens in ids if len(tokens) >= LENGTH][1::3][:count]
    own = loaded.tokenizer.encode(sample_text())[:LENGTH]
    return {"packages": [mx.array([t]) for t in long], "verify": [mx.array([own])]}


class Judge:
    """What a model says of some texts as it is, to compare it with itself afterwards."""

    def __init__(self, model: nn.Module, batches: list[mx.array]) -> None:
        self.model, self.batches = model, batches
        self.before = [_log_probabilities(model(batch)) for batch in batches]
        mx.eval(self.before)

    def result(self) -> dict[str, float]:
        """Return perplexities, the change, and the divergence in nats per token."""
        was, now, divergence = 0.0, 0.0, 0.0
        for batch, old in zip(self.batches, self.before, strict=True):
            new = _log_probabilities(self.model(batch))
            was += _loss(old, batch)
            now += _loss(new, batch)
            divergence += scalar((mx.exp(old) * (old - new)).sum(-1).mean())
        count = len(self.batches)
        return {
            "uncompressed": round(float(np.exp(was / count)), 3),
            "perplexity": round(float(np.exp(now / count)), 3),
            "perplexity_delta": round(float(np.expm1((now - was) / count)), 4),
            "divergence": round(divergence / count, 4),
            "tokens": sum(batch.size for batch in self.batches),
        }


def _log_probabilities(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _loss(log_probabilities: mx.array, batch: mx.array) -> float:
    taken = mx.take_along_axis(log_probabilities[:, :-1], batch[:, 1:, None], -1)
    return -scalar(taken.mean())


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--schemes", nargs="*", default=["int4-32", "palette4-16"])
    options.add_argument("--bits", type=float)
    options.add_argument("--evaluate", type=int, default=6, help="package descriptions")
    options.add_argument("--calibrate", type=Path, help="a file of text")
    chosen = options.parse_args()
    load_fast_blas()
    loaded = load_model(locate_model("smollm2-135m", progress=lambda what, done, total: None))
    text = None if chosen.calibrate is None else chosen.calibrate.read_text(encoding="utf-8")
    model, modules = loaded.model, matrix_paths(loaded.model)
    originals = {path: module.weight for path, module in modules.items()}
    judges = {name: Judge(model, b) for name, b in texts(loaded, chosen.evaluate).items()}

    def measure(name: str, compress: Callable[[], Compression]) -> None:
        began = time.perf_counter()
        compression = compress()
        seconds = time.perf_counter() - began
        result = {
            "scheme": name,
            "bits_per_weight": round(compression.bits_per_weight, 3),
            "compression_seconds": round(seconds, 1),
            "skipped": len(compression.skipped()),
            **{name: judge.result() for name, judge in judges.items()},
        }
        print(json.dumps({**result, "machine": machine()}), flush=True)
        for path, module in modules.items():
            module.weight = originals[path]

    def nearest(scheme: str) -> Compression:
        compression = Compression(default=Scheme.parse(scheme))
        replace_weights(model, compression)
        return compression

    for scheme in chosen.schemes:
        measure(f"{scheme}, nearest", partial(nearest, scheme))
        measure(scheme, partial(compress_model, loaded, scheme=scheme, text=text))
    if chosen.bits:
        bits = chosen.bits
        measure(f"{bits:g} bits", lambda: compress_model(loaded, bits_per_weight=bits, text=text))


if __name__ == "__main__":
    main()
