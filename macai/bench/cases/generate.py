"""Replies of a language model: the first token, the prompt's speed, the speed of what follows."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from macai.bench.cases.held import Held
from macai.bench.figure import Case, Figure, Work
from macai.bench.work import work_of
from macai.coreml.trace import Function
from macai.generate.decode import context_length, generate
from macai.models.cpu_ops import cpu_ops
from macai.models.load import LoadedModel, load_model

QUICK = ((32, 1), (128, 1), (512, 1), (32, 4), (128, 4))
WHOLE = ((128, 1), (512, 1), (2048, 1), (128, 4), (512, 4), (128, 16))
"""(tokens of the prompt, prompts at once)."""
TOKENS = {True: 16, False: 64}
"""Generated after the first one, if it is to be quick or not."""


def open_generate(path: Path, subject: str, *, quick: bool) -> list[Case]:
    """Load a language model and list what it can be measured at."""
    began = time.perf_counter()
    loaded = load_model(path)
    seconds = time.perf_counter() - began
    loaded = replace(loaded, eos_token_ids=frozenset())  # a reply must be as long as the others
    tokens, most = TOKENS[quick], context_length(loaded.config) or 1 << 20
    sizes = [(n, b) for n, b in (QUICK if quick else WHOLE) if n + tokens < most]
    vocabulary = int(loaded.model(mx.zeros((1, 1), mx.int32)).shape[-1])  # not evaluated
    cases: list[Case] = [Load(subject, seconds)]
    for context, batch in sizes:
        cases.append(Replies(loaded, subject, context, batch, tokens, vocabulary))
    return [*cases, Held("generate", subject)]


class Load:
    """Seconds until a model was ready: measured once, as it was opened."""

    def __init__(self, subject: str, seconds: float) -> None:
        figure = Figure(
            section="generate", name="load", subject=subject, unit="s", better="lower", single=True
        )
        self.figures: Mapping[str, Figure] = {"load": figure}
        self._seconds = [seconds]

    def sample(self) -> Mapping[str, float]:
        """Give it once."""
        return {"load": self._seconds.pop()} if self._seconds else {}


class Replies:
    """The same random prompt again and again, with an empty cache each time."""

    def __init__(
        self,
        loaded: LoadedModel,
        subject: str,
        context: int,
        batch: int,
        tokens: int,
        vocabulary: int,
    ) -> None:
        rng = np.random.default_rng(context)
        self._ids = rng.integers(0, vocabulary, (batch, context), np.int32)
        self._loaded, self._tokens = loaded, tokens
        prompt, step = _work(loaded, context, batch)
        common: dict[str, Any] = {
            "section": "generate",
            "subject": subject,
            "parameters": {"context": context, "batch": batch},
        }
        rate: dict[str, Any] = {"unit": "tokens/s", "better": "higher"}
        self.figures: Mapping[str, Figure] = {
            "first": Figure(name="first token", unit="s", better="lower", **common),
            "prefill": Figure(name="prefill", work=prompt, **rate, **common),
            "decode": Figure(name="decode", work=step, **rate, **common),
            "peak": Figure(name="peak memory", unit="bytes", better="lower", **common),
        }

    def sample(self) -> Mapping[str, float]:
        """Reply once."""
        mx.reset_peak_memory()
        rows = len(self._ids)
        timed = _single if rows == 1 else _together
        first, rest = timed(self._loaded, self._ids, self._tokens)
        return {
            "first": first,
            "prefill": self._ids.size / first,
            "decode": rows * self._tokens / rest,
            "peak": float(mx.get_peak_memory()),
        }


def _single(loaded: LoadedModel, ids: np.ndarray, tokens: int) -> tuple[float, float]:
    """As `macai generate` does it: seconds to the first token, and of those that follow."""
    began = time.perf_counter()
    with closing(generate(loaded, ids[0].tolist(), max_tokens=tokens + 1)) as reply:
        next(reply)
        between = time.perf_counter()
        for _ in reply:
            pass
    return between - began, time.perf_counter() - between


def _together(loaded: LoadedModel, ids: np.ndarray, tokens: int) -> tuple[float, float]:
    """As `macai score` does it, all rows at once."""
    with cpu_ops(loaded.model):
        began = time.perf_counter()
        steps = _steps(loaded, mx.array(ids))
        next(steps)
        between = time.perf_counter()
        for _ in range(tokens):
            next(steps)
        return between - began, time.perf_counter() - between


def _steps(loaded: LoadedModel, ids: mx.array) -> Iterator[Sequence[int]]:
    from mlx_lm.models.cache import make_prompt_cache

    cache: list[Any] = make_prompt_cache(loaded.model)
    if ids.shape[1] > 1:
        loaded.model(ids[:, :-1], cache=cache)
        mx.eval([layer.state for layer in cache])
    tokens = ids[:, -1]
    while True:
        tokens = mx.argmax(loaded.model(tokens[:, None], cache=cache)[:, -1], axis=-1)
        yield tokens.tolist()  # type: ignore[misc]


def _work(loaded: LoadedModel, context: int, batch: int) -> tuple[Work, Work]:
    """Of a token of the prompt, whose logits are not computed, and of one that follows it."""
    body = cast(Function, getattr(loaded.model, "model", loaded.model))
    prompt = work_of(body, [mx.zeros((batch, context), mx.int32)], loaded.model)
    step = work_of(loaded.model, [mx.zeros((batch, 1), mx.int32)], loaded.model)
    kept = _kept_bytes(loaded, context)
    return (
        Work(prompt.flops / (batch * context), prompt.bytes / (batch * context)),
        Work(step.flops / batch, step.bytes / batch + kept if step.bytes else 0.0),
    )


def _kept_bytes(loaded: LoadedModel, context: int) -> int:
    """Return what the layers keep of a prompt, which each token that follows reads once."""
    from mlx_lm.models.cache import make_prompt_cache

    cache: list[Any] = make_prompt_cache(loaded.model)
    loaded.model(mx.zeros((1, context), mx.int32), cache=cache)  # not evaluated
    total = 0
    for layer in cache:
        for _, kept in cast("list[tuple[str, Any]]", tree_flatten(layer.state)):
            if isinstance(kept, mx.array) and kept.ndim > 2:
                places = kept.shape[-2]  # a cache has room for more positions than it holds
                total += kept.nbytes * min(context, places) // places
    return total
