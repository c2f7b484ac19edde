"""Rows to token ids with a mask of what is learnt."""

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from macai.data.rows import Message, Row, bad_rows
from macai.errors import DataError

Truncation = Literal["error", "drop", "split", "keep-end"]

_MARK = "\x01"  # a character that no template and no row has a reason to hold


class _TooLongError(ValueError):
    """A row over the limit."""


class _EndlessError(ValueError):
    """A row whose reply has no end."""


_HINTS: dict[type[ValueError], str] = {
    _TooLongError: "raise data.max_length, or set data.truncation to drop, split or keep-end",
    _EndlessError: "is the template the model's own? data.strict = false trains anyway",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the model sees it.

    Attributes:
        ids: int32 [L].
        learn: bool [L]; True where the token is predicted and its loss counts. The first is never.
        good: Whether the answer is one to learn; only `macai.data.pairs` reads it.
    """

    ids: NDArray[np.int32]
    learn: NDArray[np.bool_]
    source: str
    good: bool = True

    @property
    def learnt_tokens(self) -> int:
        """The number of tokens the loss counts."""
        return int(self.learn.sum())

    @property
    def read_tokens(self) -> int:
        """The number of tokens the model must read: those before the last one that is learnt."""
        return int(np.flatnonzero(self.learn)[-1])


@dataclass(frozen=True, slots=True)
class Prepared:
    """The examples of a split, and what became of rows over the limit."""

    examples: Sequence[Example]
    dropped: int
    shortened: int


def prepare(
    splits: Sequence[Iterable[Row]],
    tokenizer: Any,
    *,
    max_length: int,
    truncation: Truncation,
    end_ids: frozenset[int] | None = None,
    kept: Sequence[Any] | None = None,
) -> list[Prepared]:
    """Tokenise every row and apply the limit; one result for each split.

    Args:
        splits: The rows of each, from `macai.data.rows`.
        tokenizer: mlx-lm's TokenizerWrapper.
        max_length: Tokens; the limit of one example.
        truncation: What happens to a longer row: an "error" naming all such rows, "drop" it,
            "split" it into pieces, or "keep-end": cut its beginning, so that the end-of-turn token
            stays. Pieces with nothing to learn are dropped.
        end_ids: If given, what is learnt must end with one of them: see `require_ended`.
        kept: Where the examples of each split are put, such as `macai.data.store.ExampleFile`:
            what has `extend`; None: lists.

    Raises:
        DataError: rows that cannot be tokenised, rows over the limit, rows with nothing learnt or
            without an end: those of all splits at once.
    """
    problems: dict[str, ValueError] = {}

    def fit(whole: Example) -> list[Example]:
        if end_ids is not None and whole.learnt_tokens:
            require_ended(whole, end_ids)
        return fit_length(whole, max_length, truncation)

    prepared = [
        _prepare(rows, tokenizer, max_length, fit, problems, examples)
        for rows, examples in zip(splits, kept or [[] for _ in splits], strict=True)
    ]
    if problems:
        raise bad_rows(list(problems), hint=hint_for(problems.values()))
    if not all(len(split.examples) for split in prepared):
        raise DataError(
            "no row is left to learn from", hint=f"all are over max_length = {max_length} tokens"
        )
    return prepared


def hint_for(problems: Collection[ValueError]) -> str | None:
    """Return what to do about problems that are all of one kind, or None."""
    kinds = {type(e) for e in problems}
    return _HINTS.get(kinds.pop()) if len(kinds) == 1 else None


def _prepare(
    rows: Iterable[Row],
    tokenizer: Any,
    max_length: int,
    fit: Callable[[Example], list[Example]],
    problems: dict[str, ValueError],
    examples: Any,
) -> Prepared:
    """Turn the rows of one split into examples, and add what is wrong with them to `problems`."""
    dropped = shortened = 0
    for row in rows:
        try:
            whole = tokenise(row, tokenizer)
            pieces = fit(whole)
        except ValueError as e:
            problems[f"{row.source}: {e}"] = e
            continue
        dropped += not pieces
        shortened += bool(pieces) and len(whole.ids) > max_length
        examples.extend(pieces)
    return Prepared(examples, dropped, shortened)


def tokenise(row: Row, tokenizer: Any) -> Example:
    """Return the ids of one row and which of them are learnt.

    Chat rows go through the model's chat template and learn what assistants say, with the mark that
    ends their turn; so do prompt/completion rows when there is a template. Text rows learn every
    token after the first, and the end-of-text token.

    Raises:
        ValueError: no chat template, or one that changes what the assistant said.
    """
    if row.chosen is not None:
        raise ValueError("has 'chosen' and 'rejected': set loss.name to dpo, orpo or simpo")
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


def require_ended(example: Example, end_ids: frozenset[int]) -> None:
    """Raise ValueError unless each learnt part ends with an id that ends a reply."""
    after = np.append(example.learn[1:], False)
    last = np.flatnonzero(example.learn & ~after)
    if not np.isin(example.ids[last], list(end_ids)).all():
        raise _EndlessError("no mark ends what is learnt, so the model would not stop")


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
    encoded = tokenizer._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array(encoded["input_ids"], np.int32)
    begins, ends = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
    learn = np.zeros(len(ids), bool)
    special = _special_ids(tokenizer)
    for turn, message in enumerate(messages):
        if message.role != "assistant" or not message.train:
            continue
        start, end = _span(text, messages, turn, tokenizer)
        inside = np.flatnonzero((begins >= start) & (begins < end))
        if not len(inside):
            raise ValueError(f"turn {turn + 1}: no token of it is the assistant's alone")
        after = int(inside[-1]) + 1
        learn[inside[0] : after] = True
        mark = after
        while mark < len(ids) and not text[begins[mark] : ends[mark]].strip():
            mark += 1  # some templates write a space before the mark
        if mark < len(ids) and int(ids[mark]) in special:
            learn[after : mark + 1] = True  # without the mark the model never stops
    learn[:1] = False
    return Example(ids, learn, source)


@functools.lru_cache(maxsize=1)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of control tokens, also of those that the tokenizer gives no role.

    Gemma's <end_of_turn> is such a one: neither its end of sequence nor in `all_special_ids`.
    """
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.eos_token_ids) | {i for i, token in added if token.special}


def _span(text: str, messages: Sequence[Message], turn: int, tokenizer: Any) -> tuple[int, int]:
    """Return the characters of `text` that the assistant's turn number `turn` must produce.

    They end where the text parts from the same conversation in which the assistant goes on with a
    control character.
    """
    longer = render(_marked(messages, turn, after=_MARK), tokenizer)
    start, end = _start(text, messages, turn, tokenizer), _common(longer, text)
    if longer == text or start >= end:
        raise ValueError(f"the chat template leaves out what turn {turn + 1} says")
    return start, end


def _start(text: str, messages: Sequence[Message], turn: int, tokenizer: Any) -> int:
    """Return where in `text` the part begins that turn number `turn` must produce.

    That is where the rendered prompt ends. But some templates add more to a prompt than they leave
    in the full text (an opening <think>): then it is where the two part, or where the turn's own
    words begin, if that is earlier. And some write earlier turns without their thoughts once the
    conversation goes on: so the two are compared from the end of the message before.
    """
    words = _common(render(_marked(messages, turn, before=_MARK), tokenizer), text)
    if turn == 0:
        return words  # there is no prompt of no messages
    prompt = render(messages[:turn], tokenizer, generation=True)
    if text.startswith(prompt):
        return len(prompt)
    previous = _marked(messages, turn - 1, after=_MARK)
    here = _common(render(previous, tokenizer), text)
    there = _common(render(previous[:turn], tokenizer, generation=True), prompt)
    return min(words, here + _common(prompt[there:], text[here:]))


def _marked(
    messages: Sequence[Message], turn: int, *, before: str = "", after: str = ""
) -> list[Message]:
    """Return the conversation with something put before or after what one turn says."""
    content = before + messages[turn].content + after
    return [*messages[:turn], replace(messages[turn], content=content), *messages[turn + 1 :]]


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


def fit_length(example: Example, max_length: int, truncation: Truncation) -> list[Example]:
    """Return what is trained of a row: itself, pieces of it, or nothing; see `prepare`.

    Raises:
        ValueError: nothing in it is learnt, or it is too long.
    """
    length = len(example.ids)
    if not example.learnt_tokens:
        raise ValueError("nothing in it is learnt")
    if length <= max_length:
        return [example]
    if truncation == "error":
        raise _TooLongError(f"{length} tokens, over max_length = {max_length}")
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
