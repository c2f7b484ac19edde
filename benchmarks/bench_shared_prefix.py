"""Gradients of the same rows with what they all begin with computed once a batch, and once a row.

    python benchmarks/bench_shared_prefix.py [--rows 6] [--rounds 5] [--system "a longer prompt"]

Prints one JSON line: seconds a micro-batch of each, medians of alternating rounds, and their ratio.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX
from macai.bench.machine import machine
from macai.catalog import find_recipe, locate_model
from macai.data.batches import Plan, make_batch, shared_prefix
from macai.data.rows import Message, read_splits
from macai.data.tokens import prepare
from macai.models.blas import load_fast_blas
from macai.models.cpu_ops import cpu_ops
from macai.models.load import load_model
from macai.models.lora import add_lora, target_paths
from macai.recipe import load_recipe
from macai.train.loss import logits_for, next_token_loss


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=6)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--system", help="instead of the data's own system prompt")
    chosen = options.parse_args()
    import mlx.core as mx
    import mlx.nn as nn

    assert load_fast_blas().found or sys.platform != "linux"
    loaded = load_model(locate_model("smollm2-135m", progress=lambda what, done, total: None))
    logits = logits_for(loaded.model)
    add_lora(loaded.model, target_paths(loaded.model, ["all-linear"]), rank=16, alpha=32.0)
    path = load_recipe(find_recipe("intents")).data.path
    assert path is not None
    rows = read_splits(path).valid[: chosen.rows]
    if chosen.system:
        system = Message(role="system", content=chosen.system)
        rows = [replace(row, messages=(system, *row.messages[1:])) for row in rows]
    (prepared,) = prepare([rows], loaded.tokenizer, max_length=4096, truncation="error")
    examples, seconds = prepared.examples, dict[int, list[float]]()
    gradient = nn.value_and_grad(loaded.model, next_token_loss)
    prefixes = (0, shared_prefix(examples))
    with cpu_ops(loaded.model):
        for number in range(chosen.rounds + 1):
            for prefix in prefixes:
                plan = Plan(tuple(range(len(examples))), max(e.read_tokens for e in examples))
                batch = make_batch(examples, plan, pad_id=0, prefix=prefix)
                began = time.perf_counter()
                mx.eval(gradient(loaded.model, batch, logits))
                if number:  # the first round warms up
                    seconds.setdefault(prefix, []).append(time.perf_counter() - began)
    each, once = (statistics.median(seconds[prefix]) for prefix in prefixes)
    result = {
        "prefix_tokens": prefixes[1],
        "rows": len(examples),
        "real_tokens": sum(len(e.ids) for e in examples),
        "seconds_once_a_row": round(each, 3),
        "seconds_once_a_batch": round(once, 3),
        "ratio": round(each / once, 2),
        "rounds": chosen.rounds,
        "machine": machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
