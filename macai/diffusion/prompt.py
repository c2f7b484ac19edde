"""A prompt as what text encoders take: chunks of 75 tokens between start and end, with weights.

With weights and long prompts as in stable-diffusion-webui; with neither exactly as in diffusers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from macai.diffusion.emphasis import Segment, parse_prompt
from macai.diffusion.tokenizer import ClipTokenizer

COMMA_BACKTRACK = 20
"""A chunk ends at its last comma when at most so many tokens are moved to the next for it."""

_COMMA = ",</w>"

Hidden = TypeVar("Hidden", mx.array, npt.NDArray[np.floating])


@dataclass(frozen=True, slots=True)
class Chunks:
    """One prompt for one text encoder.

    Attributes:
        ids: int32 [n, 77], n at least 1.
        weights: float32 [n, 77]; 1 for start, end and padding.
        empty: int32 [77], the chunk of an empty prompt.
        cut: The words a prompt that may not be long has lost, or "".
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    empty: npt.NDArray[np.int32]
    cut: str = ""

    @property
    def weighted(self) -> bool:
        """Whether any weight is not 1."""
        return bool((self.weights != 1).any())

    def padded(self, count: int) -> "Chunks":
        """Return `count` chunks: these and empty ones."""
        missing = count - len(self.ids)
        ids = np.concatenate([self.ids, np.tile(self.empty, (missing, 1))])
        weights = np.pad(self.weights, ((0, missing), (0, 0)), constant_values=1)
        return Chunks(ids, weights, self.empty, self.cut)


def chunk_prompts(
    prompts: Sequence[str],
    tokenizers: Sequence[ClipTokenizer],
    *,
    weights: bool = True,
    long_prompts: bool | None = None,
    comma_backtrack: int = COMMA_BACKTRACK,
) -> list[list[Chunks]]:
    """Return each tokenizer's chunks of each prompt; all have the same number of chunks.

    Args:
        prompts: The prompt and the negative prompt, or a batch of them.
        tokenizers: One for each text encoder of the model.
        weights: Read the syntax of `macai.diffusion.emphasis`; otherwise brackets are text.
        long_prompts: Give a long prompt several chunks instead of cutting it; None for `weights`,
            so that without weights the ids are those of diffusers.
        comma_backtrack: See COMMA_BACKTRACK; 0 ends a chunk wherever it is full.

    Raises:
        UsageError: a prompt with an absurd weight, or that is not Unicode.
    """
    long_prompts = weights if long_prompts is None else long_prompts
    found = [
        [_chunk(text, tokenizer, weights, long_prompts, comma_backtrack) for text in prompts]
        for tokenizer in tokenizers
    ]
    # Not only of one tokenizer: with "!" as a special token a prompt has more tokens.
    count = max((len(chunks.ids) for row in found for chunks in row), default=0)
    return [[chunks.padded(count) for chunks in row] for row in found]


def apply_weights(hidden: Hidden, weights: mx.array | npt.NDArray[np.float32]) -> Hidden:
    """Multiply each token's state by its weight, then bring each chunk back to its mean.

    The rule that stable-diffusion-webui calls "Original". For the states the U-Net sees, whichever
    layer they are of; pooled states have no weights. Where all weights are 1 nothing changes.

    Args:
        hidden: [n, 77, D], of any floating type; the mean is taken in float32.
        weights: float32 [n, 77].

    Returns:
        [n, 77, D] in the type of `hidden`.
    """
    if isinstance(hidden, mx.array):
        states = hidden.astype(mx.float32)
        weighed = states * mx.array(weights)[..., None]
        before, after = (x.mean(axis=(1, 2), keepdims=True) for x in (states, weighed))
        ratio = mx.where(after == 0, 1.0, before / mx.where(after == 0, 1.0, after))
    else:
        states = hidden.astype(np.float32)
        weighed = states * np.asarray(weights)[..., None]
        before, after = (x.mean(axis=(1, 2), keepdims=True) for x in (states, weighed))
        ratio = np.where(after == 0, np.float32(1), before / np.where(after == 0, 1, after))
    return (weighed * ratio).astype(hidden.dtype)


def _chunk(
    prompt: str, tokenizer: ClipTokenizer, weights: bool, long_prompts: bool, backtrack: int
) -> Chunks:
    sections = parse_prompt(prompt) if weights else [[Segment(prompt)]]
    room, length = tokenizer.max_length - 2, tokenizer.max_length
    tokens = [
        [(i, part.weight) for part in section for i in tokenizer.encode(part.text)]
        for section in sections
    ]
    cut = ""
    if long_prompts:
        if len(tokens) > 1 and not tokens[-1]:
            tokens.pop()  # nothing follows the last BREAK
        comma = tokenizer.token_id(_COMMA)
        parts = [part for section in tokens for part in _split(section, room, comma, backtrack)]
    else:
        flat = [token for section in tokens for token in section]
        parts, cut = [flat[:room]], tokenizer.decode([i for i, _ in flat[room:]])
    ids = [tokenizer.row([i for i, _ in part]) for part in parts]
    rows = [[1.0, *(weight for _, weight in part)] for part in parts]
    full = [row + [1.0] * (length - len(row)) for row in rows]
    empty = np.array(tokenizer.row([]), np.int32)
    return Chunks(np.array(ids, np.int32), np.array(full, np.float32), empty, cut)


def _split(
    tokens: list[tuple[int, float]], room: int, comma: int | None, backtrack: int
) -> list[list[tuple[int, float]]]:
    """Cut the tokens of a section into chunks of at most `room`, at least one."""
    parts = []
    while len(tokens) > room:
        end = room
        commas = [p for p in range(room - backtrack, room) if p >= 0 and tokens[p][0] == comma]
        if commas and tokens[room][0] != comma:
            end = commas[-1] + 1
        parts.append(tokens[:end])
        tokens = tokens[end:]
    return [*parts, tokens]
