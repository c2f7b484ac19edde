"""A few rows that are not learnt, and what a model replies to them."""

from collections.abc import Sequence
from dataclasses import dataclass

from macai.data.rows import Row
from macai.data.tokens import tokenise
from macai.errors import UsageError
from macai.generate.batch import generate_batch
from macai.generate.decode import token_limit
from macai.generate.prompt import chat_prompt
from macai.generate.text import decode
from macai.models.load import LoadedModel

CANDIDATES = 20  # rows, of which those with the shortest prompts are asked
TEXT_PROMPT = 16  # tokens of a text without a prompt that the model goes on from


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt.

    Attributes:
        prompt: What was asked.
        wanted: What the row says.
        reply: What the model says.
    """

    prompt: str
    wanted: str
    reply: str


@dataclass(frozen=True, slots=True)
class _Question:
    prompt: str
    wanted: str
    ids: list[int]


class Questions:
    """Asks a model the same few rows each time it is called."""

    def __init__(
        self, loaded: LoadedModel, rows: Sequence[Row], *, count: int, max_tokens: int
    ) -> None:
        """Choose rows.

        Args:
            loaded: The model, asked as it is at the time.
            rows: To choose from.
            count: At most so many.
            max_tokens: Of a reply.
        """
        self._loaded, self._max_tokens = loaded, max_tokens
        asked = [q for row in rows[:CANDIDATES] if (q := _question(row, loaded))]
        shortest = sorted(range(len(asked)), key=lambda n: len(asked[n].ids))[:count]
        self._questions = [asked[n] for n in sorted(shortest)]

    def __call__(self) -> list[Asked]:
        """Return the prompts with the model's greedy replies."""
        if not self._questions:
            return []
        model = self._loaded.model
        training = model.training
        model.eval()  # no dropout
        try:
            replies = generate_batch(
                self._loaded, [q.ids for q in self._questions], max_tokens=self._max_tokens
            )
        finally:
            model.train(training)
        pairs = zip(self._questions, replies, strict=True)
        return [Asked(q.prompt, q.wanted, reply.text) for q, reply in pairs]


def _question(row: Row, loaded: LoadedModel) -> _Question | None:
    """Return what to ask of a row; None if there is nothing, or no room for a reply."""
    try:
        question = _of_chat(row, loaded) if row.messages else _of_text(row, loaded)
        if question:
            token_limit(loaded.config, question.ids, 1)
    except UsageError:
        return None
    return question


def _of_chat(row: Row, loaded: LoadedModel) -> _Question | None:
    """Return the last turn that is learnt, and what comes before it."""
    turns = [n for n, m in enumerate(row.messages) if m.role == "assistant" and m.train and n]
    if not turns:
        return None
    before, turn = row.messages[: turns[-1]], row.messages[turns[-1]]
    return _Question(before[-1].content, turn.content, chat_prompt(loaded, before))


def _of_text(row: Row, loaded: LoadedModel) -> _Question:
    if row.prompt is not None:
        wanted = row.chosen if row.completion is None else row.completion
        return _Question(row.prompt, wanted or "", list(loaded.tokenizer.encode(row.prompt)))
    ids = tokenise(row, loaded.tokenizer).ids.tolist()
    begin = min(TEXT_PROMPT, len(ids) // 2)
    said, rest = (decode(loaded.tokenizer, part) for part in (ids[:begin], ids[begin:]))
    return _Question(said, rest, ids[:begin])
