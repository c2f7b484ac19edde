"""What schemes of weight compression cost SmolLM2-135M: bits per weight, perplexity, divergence.

    python -m benchmarks.bench_compressed_llm [--schemes int4-32 palette4-16] [--bits 4.5]

English text is what Python packages here say of themselves: one in three to evaluate on, the others
to calibrate with. Prints one JSON line for each scheme, with rounding alone and with errors fed
back (gptq.py); with --bits, one for the mix of the schemes that sensitivity.py chooses, too.
"""

import argparse
import json
import time
from collections.abc import Mapping
from importlib import metadata

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX

# isort: split
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.catalog import locate_model
from macai.coreml.calibrate import input_moments, matrix_paths
from macai.coreml.compress import Compression, Scheme
from macai.coreml.sensitivity import measure_sensitivity
from macai.models.arrays import scalar
from macai.models.blas import load_fast_blas
from macai.models.load import LoadedModel, load_model
from macai.page.machine import machine

LENGTH = 512


def texts(loaded: LoadedModel) -> list[list[int]]:
    """Return the first tokens of each package's description that is long enough."""
    said = {d.name: d.metadata.get_payload() or "" for d in metadata.distributions()}  # type: ignore[attr-defined]
    ids = [loaded.tokenizer.encode(text[:6000]) for _, text in sorted(said.items())]
    return [tokens[:LENGTH] for tokens in ids if len(tokens) >= LENGTH]


def loss_and_divergence(
    model: nn.Module, batches: list[mx.array], before: list[mx.array]
) -> tuple[float, float]:
    """Return nats per token; `before` holds log-probabilities, and is filled if it is empty."""
    fill, loss, divergence, tokens = not before, 0.0, 0.0, 0
    for number, batch in enumerate(batches):
        logits = model(batch)
        now = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if fill:
            before.append(now)
        old = before[number]
        divergence += scalar((mx.exp(old) * (old - now)).mean(axis=(0, 1)).sum())
        loss -= scalar(mx.take_along_axis(now[:, :-1], batch[:, 1:, None], -1).sum())
        tokens += batch[:, 1:].size
    return loss / tokens, divergence / len(batches)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--schemes", nargs="+", default=["int4-32", "palette4-16"])
    options.add_argument("--bits", type=float)
    options.add_argument("--evaluate", type=int, default=6, help="texts")
    options.add_argument("--calibrate", type=int, default=8, help="texts")
    options.add_argument("--budget", type=float, default=600, help="seconds to measure in")
    chosen = options.parse_args()
    load_fast_blas()
    loaded = load_model(locate_model("smollm2-135m", progress=lambda what, done, total: None))
    model, found = loaded.model, texts(loaded)
    evaluated = [mx.array([t]) for t in found[1::3][: chosen.evaluate]]
    calibrated = [mx.array([t]) for n, t in enumerate(found) if n % 3 != 1][: chosen.calibrate]
    before: list[mx.array] = []
    base, _ = loss_and_divergence(model, evaluated, before)
    moments = input_moments(model, calibrated)
    modules = matrix_paths(model)
    originals = {path: module.weight for path, module in modules.items()}

    def measure(name: str, compression: Compression) -> None:
        began = time.perf_counter()
        for path, module in modules.items():
            stored = compression(path, np.array(originals[path]))
            if stored is not None:
                module.weight = mx.array(stored.dense())
        seconds = time.perf_counter() - began
        loss, divergence = loss_and_divergence(model, evaluated, before)
        for path, module in modules.items():
            module.weight = originals[path]
        result: Mapping[str, object] = {
            "scheme": name,
            "feedback": bool(compression.moments),
            "bits_per_weight": round(compression.bits_per_weight, 3),
            "perplexity": round(float(np.exp(loss)), 3),
            "uncompressed": round(float(np.exp(base)), 3),
            "perplexity_delta": round(float(np.expm1(loss - base)), 4),
            "divergence": round(divergence, 4),
            "compression_seconds": round(seconds, 1),
            "tokens": len(evaluated) * LENGTH,
            "skipped": len(compression.skipped()),
        }
        print(json.dumps({**result, "machine": machine()}), flush=True)

    schemes = [Scheme.parse(name) for name in chosen.schemes]
    for scheme in schemes:
        measure(str(scheme), Compression(default=scheme, moments=moments))
        measure(str(scheme), Compression(default=scheme))
    if chosen.bits:
        sensitivity = measure_sensitivity(
            model, calibrated[:1], schemes, moments=moments, budget_seconds=chosen.budget
        )
        mix = sensitivity.choose(chosen.bits)
        measure(f"mixed {chosen.bits:g}", Compression(schemes=mix, moments=moments))


if __name__ == "__main__":
    main()
