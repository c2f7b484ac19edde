"""Rows longer than the limit, and rows with nothing to learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.data.rows import Message, Row
from macai.data.tokens import prepare, tokenise
from macai.errors import DataError
from tests.data.cases import SAID, WORDS, chat

LONG = "sleeps " * 30


def rows_of(*said):
    return [
        Row(
            source=f"rows.jsonl:{i}",
            messages=(Message(role="user", content="q"), Message(role="assistant", content=s)),
        )
        for i, s in enumerate(said, 1)
    ]


def fit(rows, tokenizer, truncation, max_length=24):
    return prepare([rows], tokenizer, max_length=max_length, truncation=truncation)[0]


def test_every_row_over_the_limit_is_listed_with_its_length(tokenizer):
    rows = rows_of("ok", LONG, "ok", LONG + "x")
    lengths = [len(tokenise(row, tokenizer).ids) for row in rows]
    with pytest.raises(DataError) as caught:
        fit(rows, tokenizer, "error")
    assert caught.value.message.splitlines() == [
        "2 bad rows:",
        f"  rows.jsonl:2: {lengths[1]} tokens, over max_length = 24",
        f"  rows.jsonl:4: {lengths[3]} tokens, over max_length = 24",
    ]


def test_the_limit_itself_is_allowed(tokenizer):
    length = len(tokenise(rows_of("Hello")[0], tokenizer).ids)
    assert len(fit(rows_of("Hello"), tokenizer, "error", length).examples) == 1
    with pytest.raises(DataError, match="1 bad row"):
        fit(rows_of("Hello"), tokenizer, "error", length - 1)


def test_rows_over_the_limit_can_be_dropped(tokenizer):
    prepared = fit(rows_of("ok", LONG, "fine"), tokenizer, "drop")
    assert [e.source for e in prepared.examples] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert (prepared.dropped, prepared.shortened) == (1, 0)


def test_splitting_keeps_every_token_and_the_end(tokenizer):
    (row,) = rows_of(LONG)
    whole = tokenise(row, tokenizer)
    prepared = fit([row], tokenizer, "split")
    pieces = prepared.examples
    assert np.concatenate([p.ids for p in pieces]).tolist() == whole.ids.tolist()
    assert all(len(p.ids) <= 24 and not p.learn[0] and p.learnt_tokens for p in pieces)
    # Only the first token of each later piece is learnt no more: nothing predicts it.
    assert sum(p.learnt_tokens for p in pieces) == whole.learnt_tokens - (len(pieces) - 1)
    assert pieces[-1].ids[pieces[-1].learn][-1] == tokenizer.eos_token_id
    assert (prepared.dropped, prepared.shortened) == (0, 1)


def test_cutting_the_beginning_keeps_the_mark_that_ends_the_turn(tokenizer):
    (row,) = rows_of(LONG)
    whole = tokenise(row, tokenizer)
    (piece,) = fit([row], tokenizer, "keep-end").examples
    assert piece.ids.tolist() == whole.ids[-24:].tolist()
    assert piece.learn.tolist() == [False, *whole.learn[-23:].tolist()]
    assert piece.ids[piece.learn][-1] == tokenizer.eos_token_id
    # Cutting the end, as others do, keeps no such mark: the row is one that can tell.
    assert tokenizer.eos_token_id not in whole.ids[:24][whole.learn[:24]]


@pytest.mark.parametrize("truncation", ["split", "keep-end"])
def test_a_piece_with_nothing_to_learn_is_dropped(tokenizer, truncation):
    hidden = chat("q", "Hello", LONG, roles="uau")  # the answer is in the first piece, cut off
    rows = [*rows_of("ok"), hidden]
    prepared = fit(rows, tokenizer, truncation)
    assert all(e.learnt_tokens for e in prepared.examples)
    kept = 2 if truncation == "split" else 1
    assert len(prepared.examples) == kept
    assert prepared.dropped == 2 - kept


def test_when_truncation_leaves_nothing_to_learn_the_run_is_refused(tokenizer):
    hidden = chat("q", "Hello", LONG, roles="uau")
    with pytest.raises(DataError, match="no row is left to learn from") as caught:
        fit([hidden], tokenizer, "keep-end")
    assert caught.value.hint == "all are over max_length = 24 tokens"


@pytest.mark.parametrize("truncation", ["error", "drop", "split", "keep-end"])
def test_a_row_without_a_learnt_token_is_a_bad_row(with_template, truncation):
    tokenizer = with_template(None)
    tokenizer._tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"rows.jsonl:3: nothing in it is learnt"):
        fit([Row(source="rows.jsonl:3", text="a")], tokenizer, truncation)


@given(
    st.lists(st.tuples(WORDS, SAID), min_size=1, max_size=3),
    st.integers(8, 40),
    st.sampled_from(["drop", "split", "keep-end"]),
)
def test_no_example_is_too_long_or_without_something_to_learn(tokenizer, turns, limit, truncation):
    row = chat(*(text for turn in turns for text in turn))
    short = Row(source="r", text="a b c")  # so that a row is left
    prepared = fit([row, short], tokenizer, truncation, limit)
    for example in prepared.examples:
        assert len(example.ids) == len(example.learn) <= limit
        assert example.learnt_tokens >= 1
        assert not example.learn[0]
