"""Gradients of the same rows with what they all begin with computed once a batch, and once a row.

    python -m benchmarks.bench_shared_prefix [--rows 6] [--rounds 5] [--system "a longer prompt"]

Gives seconds of a micro-batch either way, and their ratio.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX
from benchmarks.harness import in_turns, tell
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
    rows = list(islice(read_splits(path).valid, chosen.rows))
    if chosen.system:
        system = Message(role="system", content=chosen.system)
        rows = [replace(row, messages=(system, *row.messages[1:])) for row in rows]
    (prepared,) = prepare([rows], loaded.tokenizer, max_length=4096, truncation="error")
    examples = prepared.examples
    gradient = nn.value_and_grad(loaded.model, next_token_loss)

    def micro_batch(prefix: int) -> Mapping[str, float]:
        plan = Plan(tuple(range(len(examples))), max(e.read_tokens for e in examples))
        batch = make_batch(examples, plan, pad_id=0, prefix=prefix)
        began = time.perf_counter()
        mx.eval(gradient(loaded.model, batch, logits))
        return {"seconds": time.perf_counter() - began}

    prefix = shared_prefix(examples)
    sides = {"once a row": partial(micro_batch, 0), "once a batch": partial(micro_batch, prefix)}
    with cpu_ops(loaded.model):
        measured = in_turns(sides, chosen.rounds, warm_up=1)
    facts = {"rows": len(examples), "real_tokens": sum(len(e.ids) for e in examples)}
    tell("shared prefix", measured, to="once a batch", prefix_tokens=prefix, **facts)


if __name__ == "__main__":
    main()
