"""Greedy replies to many prompts at once, for scoring."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from macai.generate.decode import FinishReason, generate, token_limit
from macai.generate.text import decode
from macai.models.cpu_ops import cpu_ops
from macai.models.load import LoadedModel

BATCH_ROWS = 100
"""About the fastest for a small model on two cores: 64 took a tenth longer, 200 a third."""

BATCH_TOKENS = 16384
"""The most tokens the caches of a batch hold: 100 rows of a long prompt would not fit in memory."""

PREFILL_STEP = 512


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said to one prompt.

    Attributes:
        ids: All generated ids, the end token included.
        text: Without special tokens.
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


def generate_batch(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Reply]:
    """Return the greedy reply to each prompt, in their order, as `generate` gives it.

    Prompts of like length run together, padded on the left; a row leaves as soon as it has ended.
    A model whose layers keep more than keys and values gets its prompts one by one.

    Args:
        loaded: The model.
        prompts: Ids of each prompt.
        max_tokens: At most so many a reply, the end token included.
        progress: Called with how many replies are complete and how many there will be.

    Raises:
        UsageError: a prompt is empty or too long for the context, or `max_tokens` not positive.
    """
    limits = [token_limit(loaded.config, prompt, max_tokens) for prompt in prompts]
    run = _run_batch if _batch_caches(loaded.model, [0]) else _run_single
    lengths = [len(p) + limit for p, limit in zip(prompts, limits, strict=True)]
    replies: dict[int, Reply] = {}
    with cpu_ops(loaded.model):
        for batch in _batches(lengths):

            def report(ended: int, before: int = len(replies)) -> None:
                if progress:
                    progress(before + ended, len(prompts))

            ids = run(loaded, [prompts[i] for i in batch], [limits[i] for i in batch], report)
            replies |= {i: _reply(loaded, row) for i, row in zip(batch, ids, strict=True)}
    return [replies[i] for i in range(len(prompts))]


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Yield the indices of rows that run together; `lengths` are those of prompt and reply."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if len(batch) == BATCH_ROWS or (len(batch) + 1) * lengths[i] > BATCH_TOKENS:
            if batch:
                yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _run_batch(
    loaded: LoadedModel,
    prompts: list[Sequence[int]],
    limits: list[int],
    report: Callable[[int], None],
) -> list[list[int]]:
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    prompt = mx.array([[0] * n + list(p) for n, p in zip(padding, prompts, strict=True)], mx.int32)
    caches = _batch_caches(loaded.model, padding)
    assert caches is not None
    for start in range(0, width - 1, PREFILL_STEP):
        loaded.model(prompt[:, start : min(start + PREFILL_STEP, width - 1)], cache=caches)
        mx.eval([cache.state for cache in caches])
    replies: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    tokens = prompt[:, -1]
    while rows:
        tokens = mx.argmax(loaded.model(tokens[:, None], cache=caches)[:, -1], axis=-1)
        for row, token_id in zip(rows, cast(list[int], tokens.tolist()), strict=True):
            replies[row].append(token_id)
        going = [
            place
            for place, row in enumerate(rows)
            if replies[row][-1] not in loaded.eos_token_ids and len(replies[row]) < limits[row]
        ]
        if going and len(going) < len(rows):
            keep = mx.array(going)
            tokens = tokens[keep]
            for cache in caches:
                cache.filter(keep)
        rows = [rows[place] for place in going]
        report(len(prompts) - len(rows))
    return replies


def _run_single(
    loaded: LoadedModel,
    prompts: list[Sequence[int]],
    limits: list[int],
    report: Callable[[int], None],
) -> list[list[int]]:
    replies = []
    for prompt, limit in zip(prompts, limits, strict=True):
        replies.append([token.id for token in generate(loaded, prompt, max_tokens=limit)])
        report(len(replies))
    return replies


def _reply(loaded: LoadedModel, ids: list[int]) -> Reply:
    ended = ids[-1] in loaded.eos_token_ids
    text = decode(loaded.tokenizer, ids[:-1] if ended else ids)
    return Reply(tuple(ids), text, "stop" if ended else "length")


def _batch_caches(model: nn.Module, left_padding: list[int]) -> list[Any] | None:
    """Return caches for rows padded on the left, or None if the model has others than these."""
    from mlx_lm.models import cache

    batched: list[Any] = []
    for layer in cache.make_prompt_cache(model):
        if type(layer) is cache.KVCache:
            batched.append(cache.BatchKVCache(left_padding))
        elif type(layer) is cache.RotatingKVCache and not layer.keep:
            batched.append(cache.BatchRotatingKVCache(layer.max_size, left_padding))
        else:
            return None
    return batched
