"""Rows to token ids with a mask of what is learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from macai.data.rows import Message, Row, bad_rows
from macai.errors import DataError

Truncation = Literal["error", "drop", "split", "keep-end"]


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the model sees it.

    Attributes:
        ids: int32 [L].
        learn: bool [L]; True where the token is predicted and its loss counts. The first is never.
    """

    ids: NDArray[np.int32]
    learn: NDArray[np.bool_]
    source: str

    @property
    def learnt_tokens(self) -> int:
        """The number of tokens the loss counts."""
        return int(self.learn.sum())


@dataclass(frozen=True, slots=True)
class Prepared:
    """The examples of a split, and what became of rows over the limit."""

    examples: list[Example]
    dropped: int
    shortened: int


def prepare(
    rows: Sequence[Row], tokenizer: Any, *, max_length: int, truncation: Truncation
) -> Prepared:
    """Tokenise every row and apply the limit.

    Args:
        rows: From `macai.data.rows`.
        tokenizer: mlx-lm's TokenizerWrapper.
        max_length: Tokens; the limit of one example.
        truncation: What happens to a longer row: an "error" naming all such rows, "drop" it,
            "split" it into pieces, or "keep-end": cut its beginning, so that the end-of-turn token
            stays. Pieces with nothing to learn are dropped.

    Raises:
        DataError: rows that cannot be tokenised, rows over the limit, or rows with nothing learnt.
    """
    examples: list[Example] = []
    problems: list[str] = []
    dropped = shortened = 0
    for row in rows:
        try:
            whole = tokenise(row, tokenizer)
            pieces = _fit(whole, max_length, truncation)
        except ValueError as e:
            problems.append(f"{row.source}: {e}")
            continue
        dropped += not pieces
        shortened += bool(pieces) and len(whole.ids) > max_length
        examples.extend(pieces)
    if problems:
        raise bad_rows(problems)
    if not examples:
        raise DataError(
            "no row is left to learn from", hint=f"all are over max_length = {max_length} tokens"
        )
    return Prepared(examples, dropped, shortened)


def tokenise(row: Row, tokenizer: Any) -> Example:
    """Return the ids of one row and which of them are learnt.

    Chat rows go through the model's chat template and learn what assistants say, with the mark that
    ends their turn; so do prompt/completion rows when there is a template. Text rows learn every
    token after the first, and the end-of-text token.

    Raises:
        ValueError: no chat template, or one that changes what the assistant said.
    """
    if row.text is not None:
        return _text_example(row, tokenizer)
    messages = row.messages
    if row.prompt is not None and row.completion is not None:
        if not tokenizer.has_chat_template:
            return _completion_example(row, tokenizer)
        messages = (
            Message(role="user", content=row.prompt),
            Message(role="assistant", content=row.completion),
        )
    return _chat_example(messages, row.source, tokenizer)


def render(messages: Sequence[Message], tokenizer: Any, *, generation: bool = False) -> str:
    """Return the conversation as text; with `generation`, up to where the assistant begins."""
    if not tokenizer.has_chat_template:
        raise ValueError("the model has no chat template; use 'prompt' and 'completion', or 'text'")
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation
        )
    except Exception as e:  # jinja2 and the templates' own raise_exception have no common base
        raise ValueError(f"the chat template refuses it: {e}") from e
    return str(text)


def _chat_example(messages: Sequence[Message], source: str, tokenizer: Any) -> Example:
    text = render(messages, tokenizer)
    spans = [
        _span(text, messages, i, tokenizer)
        for i, message in enumerate(messages)
        if message.role == "assistant" and message.train
    ]
    encoded = tokenizer._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array(encoded["input_ids"], np.int32)
    begins, ends = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
    learn = np.zeros(len(ids), bool)
    special = set(tokenizer.all_special_ids) | set(tokenizer.eos_token_ids)
    for start, end in spans:
        inside = (begins >= start) & (begins < end) & (ends > begins)
        learn |= inside
        after = int(np.flatnonzero(inside)[-1]) + 1 if inside.any() else len(ids)
        if after < len(ids) and int(ids[after]) in special:
            learn[after] = True  # the mark that ends the turn: without it the model never stops
    learn[:1] = False
    return Example(ids, learn, source)


def _span(text: str, messages: Sequence[Message], turn: int, tokenizer: Any) -> tuple[int, int]:
    """Return the characters of `text` that the assistant's turn number `turn` must produce.

    They start where the rendered prompt ends; some templates add more to a prompt than they leave
    in the full text (an opening <think>), so that is where the two part. They end where the text
    parts from the same conversation in which the assistant goes on with a control character.
    """
    said = messages[turn]
    longer = Message(role=said.role, content=said.content + "\x01")
    start = _common(render(messages[:turn], tokenizer, generation=True), text)
    end = _common(render([*messages[:turn], longer, *messages[turn + 1 :]], tokenizer), text)
    if start >= end:
        raise ValueError(f"the chat template leaves out what turn {turn + 1} says")
    return start, end


def _common(a: str, b: str) -> int:
    """Return how many characters `a` and `b` begin with alike."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _completion_example(row: Row, tokenizer: Any) -> Example:
    prompt = tokenizer.encode(row.prompt)
    completion = tokenizer.encode(row.completion, add_special_tokens=False)
    ids = [*prompt, *completion, *_end(tokenizer)]
    learn = np.arange(len(ids)) >= max(1, len(prompt))
    return Example(np.array(ids, np.int32), learn, row.source)


def _text_example(row: Row, tokenizer: Any) -> Example:
    ids = [*tokenizer.encode(row.text), *_end(tokenizer)]
    return Example(np.array(ids, np.int32), np.arange(len(ids)) > 0, row.source)


def _end(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _fit(example: Example, max_length: int, truncation: Truncation) -> list[Example]:
    length = len(example.ids)
    if not example.learnt_tokens:
        raise ValueError("nothing in it is learnt")
    if length <= max_length:
        return [example]
    if truncation == "error":
        raise ValueError(f"{length} tokens, over max_length = {max_length}")
    if truncation == "drop":
        return []
    starts = [length - max_length] if truncation == "keep-end" else range(0, length, max_length)
    pieces = []
    for start in starts:
        ids = example.ids[start : start + max_length]
        learn = example.learn[start : start + max_length].copy()
        learn[0] = False  # its context was cut off
        if learn.any():
            pieces.append(Example(ids, learn, example.source))
    return pieces
