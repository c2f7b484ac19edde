"""Whether macai bench's figures are right, and what its measuring costs: beside plain loops.

    python -m benchmarks.bench_stopwatch [--rounds 20] [--context 32] [--tokens 16]

In one process, in turns, on SmolLM2-135M: a sample of `macai bench generate`; the same reply with
nothing measured but the whole; and a loop around the generator that counts what it gets after the
first token, with a stopwatch. Gives tokens a second of decoding by the first and the third, seconds
of a whole reply by the first and the second, and the ratios of both to the first, by rounds.
"""

import argparse
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX

# isort: split
import mlx.core as mx
import numpy as np

from benchmarks.harness import in_turns, tell
from macai.bench.cases.generate import Replies
from macai.catalog import locate_model
from macai.generate.decode import generate
from macai.models.load import LoadedModel, load_model


def main() -> None:
    """Print one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--context", type=int, default=32)
    options.add_argument("--tokens", type=int, default=16)
    chosen = options.parse_args()
    loaded = load_model(locate_model("smollm2-135m", progress=lambda *_: None))
    loaded = replace(loaded, eos_token_ids=frozenset())  # all replies are as long
    context, tokens = chosen.context, chosen.tokens
    vocabulary = int(loaded.model(mx.zeros((1, 1), mx.int32)).shape[-1])
    case = Replies(loaded, "smollm2-135m", context, 1, tokens, vocabulary)
    ids = np.random.default_rng(context).integers(0, vocabulary, (1, context), np.int32)
    sides = {
        "macai bench": partial(_measured, case),
        "nothing measured": partial(_plain, loaded, ids, tokens),
        "a stopwatch": partial(_by_stopwatch, loaded, ids, tokens),
    }
    measured = in_turns(sides, chosen.rounds, warm_up=2)
    tell("stopwatch", measured, to="macai bench", context=context, tokens=tokens)


def _measured(case: Replies) -> Mapping[str, float]:
    began = time.perf_counter()
    values = case.sample()
    return {"reply_seconds": time.perf_counter() - began, "tokens_per_second": values["decode"]}


def _plain(loaded: LoadedModel, ids: np.ndarray, tokens: int) -> Mapping[str, float]:
    began = time.perf_counter()
    with closing(generate(loaded, ids[0].tolist(), max_tokens=tokens + 1)) as reply:
        for _ in reply:
            pass
    return {"reply_seconds": time.perf_counter() - began}


def _by_stopwatch(loaded: LoadedModel, ids: np.ndarray, tokens: int) -> Mapping[str, float]:
    reply = generate(loaded, ids[0].tolist(), max_tokens=tokens + 1)
    next(reply)
    began = time.perf_counter()
    count = sum(1 for _ in reply)
    return {"tokens_per_second": count / (time.perf_counter() - began)}


if __name__ == "__main__":
    main()
