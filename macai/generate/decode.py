"""The decoding loop: prompt ids in, tokens with their text out, one at a time."""

from collections.abc import Container, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import mlx.core as mx

from macai.errors import UsageError
from macai.generate.cache import PromptCache
from macai.generate.sample import Sampler, greedy
from macai.generate.stop import StopMatcher
from macai.generate.text import TextStream
from macai.models.arrays import scalar
from macai.models.load import LoadedModel

FinishReason = Literal["stop", "length"]
"""An end token or a stop string; or no tokens, or no context, left."""

CLEAR_EVERY = 256
"""Steps; the caches grow by so many at once and leave their old buffers to the allocator."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        text: What became certain with it; empty in the middle of a character, while a stop string
            may have begun, and for end tokens unless they release what was held back.
        logprob: Its log-probability, before temperature and top_p.
        finish_reason: Set on the last token only.
    """

    id: int
    text: str
    logprob: float
    finish_reason: FinishReason | None = None


def generate(
    loaded: LoadedModel,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    sampler: Sampler = greedy,
    stop: Sequence[str] = (),
    cache: PromptCache | None = None,
    prefill_step: int = 512,
) -> Generator[Token, None, None]:
    """Continue a prompt; nothing is computed before the first token is asked for.

    The next token is being computed while the caller handles the last one.

    Args:
        loaded: The model.
        prompt_ids: The whole prompt, also with a `cache`.
        max_tokens: At most so many, the end token included.
        sampler: From `macai.generate.sample`.
        stop: Strings that end the reply; they are not part of its text.
        cache: What it shares with the prompt is not computed again; it is updated in place.
        prefill_step: Prompt ids computed at once; bounds the memory a long prompt needs.

    Raises:
        UsageError: the prompt is empty or leaves no room in the model's context, `max_tokens` is
            not positive, or a stop string is empty; raised at once, not at the first token.
    """
    limit = token_limit(loaded.config, prompt_ids, max_tokens)
    steps = _steps(cache or PromptCache(loaded.model), prompt_ids, limit, sampler, prefill_step)
    return stream(loaded.tokenizer, loaded.eos_token_ids, steps, limit=limit, stop=stop)


def token_limit(config: dict[str, Any], prompt_ids: Sequence[int], max_tokens: int) -> int:
    """Return how many tokens may follow the prompt by a model's config; UsageError if none."""
    if max_tokens < 1:
        raise UsageError(f"max_tokens must be 1 or more, got {max_tokens}")
    if not prompt_ids:
        raise UsageError("the prompt is empty")
    context = context_length(config)
    if context is None:
        return max_tokens
    if len(prompt_ids) >= context:
        raise UsageError(
            f"the prompt is {len(prompt_ids)} tokens, the model's context {context}",
            hint="shorten the prompt; a reply needs room too",
        )
    return min(max_tokens, context - len(prompt_ids))


def context_length(config: dict[str, Any]) -> int | None:
    """Return the most tokens a model handles by its config, or None if that does not say."""
    text = config.get("text_config") or {}
    for value in (config, text):
        for key in ("max_position_embeddings", "n_positions", "n_ctx"):
            if isinstance(value.get(key), int):
                return int(value[key])
    return None


def stream(
    tokenizer: Any,
    eos_token_ids: Container[int],
    steps: Iterator[tuple[int, float]],
    *,
    limit: int,
    stop: Sequence[str] = (),
) -> Generator[Token, None, None]:
    """Turn ids and their log-probabilities, whatever computes them, into tokens until one ends it.

    `limit` is how many there may be; UsageError for an empty stop string, raised at once.
    """
    return _tokens(tokenizer, eos_token_ids, steps, limit, StopMatcher(stop))


def _tokens(
    tokenizer: Any,
    eos_token_ids: Container[int],
    steps: Iterator[tuple[int, float]],
    limit: int,
    matcher: StopMatcher,
) -> Generator[Token, None, None]:
    text = TextStream(tokenizer)
    for count, (token_id, logprob) in enumerate(steps, 1):
        ends = token_id in eos_token_ids
        piece = "" if ends else text.add(token_id)
        if ends or count == limit:
            piece += text.flush()
        piece, matched = matcher.add(piece)
        reason: FinishReason | None = None
        if ends or matched:
            reason = "stop"
        elif count == limit:
            reason = "length"
        if reason and not matched:
            piece += matcher.flush()
        yield Token(token_id, piece, logprob, reason)
        if reason:
            return


def _steps(
    cache: PromptCache, prompt_ids: Sequence[int], limit: int, sampler: Sampler, prefill_step: int
) -> Iterator[tuple[int, float]]:
    """Yield each id and its log-probability; ends of replies are the caller's to see."""

    def step(ids: mx.array) -> tuple[mx.array, mx.array]:
        logits = cache.feed(ids)[:, -1].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        token = sampler(logprobs)
        chosen = mx.take_along_axis(logprobs, token[:, None], axis=-1)
        mx.async_eval(token, chosen)
        return token, chosen

    following = step(_prefill(cache, prompt_ids, prefill_step))
    cache.ids.append(prompt_ids[-1])
    for number in range(1, limit + 1):
        token, chosen = following
        if number < limit:
            following = step(token)  # before the value is read: reading waits for this token only
        token_id = cast(int, token.item())
        if number < limit:
            cache.ids.append(token_id)
        if number % CLEAR_EVERY == 0:
            mx.clear_cache()
        yield token_id, scalar(chosen)


def _prefill(cache: PromptCache, prompt_ids: Sequence[int], prefill_step: int) -> mx.array:
    """Feed all of the prompt but its last id, which is returned: int32 [1]."""
    last = len(prompt_ids) - 1
    prompt = mx.array(list(prompt_ids), mx.int32)
    for start in range(cache.keep_prefix(prompt_ids), last, prefill_step):
        end = min(start + prefill_step, last)
        cache.feed(prompt[start:end])
        mx.eval([layer.state for layer in cache.layers])  # not the logits: nobody reads them
        cache.ids.extend(prompt_ids[start:end])
    return prompt[last:]
