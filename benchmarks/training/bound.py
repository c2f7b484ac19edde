"""What a machine's matrix products allow: their rate, and how many a token takes.

    python -m benchmarks.training.bound --model DIR [--tokens 1024] [--rank 16]

The rates are those of the model's own products, forward and backward, on all cores or the GPU, in
the type that the model computes in: the best of several tries, as other work only makes them lower.
That by processor time is disturbed least by it; on a GPU it means nothing.
"""

import argparse
import json
import time
from pathlib import Path

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX

# isort: split
import mlx.core as mx

from macai.models.load import load_network
from macai.models.lora import HEAD, linear_paths, linear_shape

TRIES = 7


def main() -> None:
    """Print one line of JSON."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--tokens", type=int, default=1024)
    options.add_argument("--rank", type=int, default=16)
    chosen = options.parse_args()
    model = load_network(chosen.model, as_stored=True)
    modules = dict(model.named_modules())
    shapes = [linear_shape(modules[p]) for p in linear_paths(model) if not p.endswith(HEAD)]
    embedding = linear_shape(modules["model.embed_tokens"])
    dtype = mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16
    rates = rates_of(sorted(set(shapes)), chosen.tokens, dtype)
    result = {
        "block_parameters": sum(rows * columns for rows, columns in shapes),
        "head_parameters": embedding[0] * embedding[1],
        "adapter_parameters": sum(chosen.rank * sum(shape) for shape in shapes),
        "flops_per_second": rates[0],
        "flops_per_cpu_second": rates[1],
    }
    print(json.dumps(result))


def rates_of(shapes: list[tuple[int, int]], tokens: int, dtype: mx.Dtype) -> tuple[float, float]:
    """Return operations a second of products with weights of these shapes: by wall and CPU."""
    weights = [mx.random.normal(shape).astype(dtype) for shape in shapes]
    inputs = [mx.random.normal((tokens, columns)).astype(dtype) for _, columns in shapes]
    slopes = [mx.random.normal((tokens, rows)).astype(dtype) for rows, _ in shapes]
    mx.eval(weights, inputs, slopes)
    operations = 4 * tokens * sum(rows * columns for rows, columns in shapes)
    by_wall, by_cpu = 0.0, 0.0
    for _ in range(TRIES):
        began = time.perf_counter(), time.process_time()
        mx.eval([x @ w.T for x, w in zip(inputs, weights, strict=True)])
        mx.eval([g @ w for g, w in zip(slopes, weights, strict=True)])
        by_wall = max(by_wall, operations / (time.perf_counter() - began[0]))
        by_cpu = max(by_cpu, operations / (time.process_time() - began[1]))
    return by_wall, by_cpu


if __name__ == "__main__":
    main()
