import dataclasses
import json
import shutil

import pytest

from macai.errors import UsageError
from macai.generate import batch
from macai.generate.batch import generate_batch
from macai.generate.decode import generate
from macai.models.load import load_model
from tests.tiny import CONTEXT

PROMPTS = [[(i * 31 + j * 17) % 400 + 3 for j in range(1 + i * 5 % 23)] for i in range(45)]


def one_by_one(loaded, prompts, max_tokens):
    replies = []
    for prompt in prompts:
        tokens = list(generate(loaded, prompt, max_tokens=max_tokens))
        text = "".join(token.text for token in tokens)
        replies.append((tuple(t.id for t in tokens), text, tokens[-1].finish_reason))
    return replies


def as_tuples(replies):
    return [dataclasses.astuple(reply) for reply in replies]


def with_more_ends(loaded):
    """Make some tokens ends, so that many random replies come to one, each at another step."""
    rows = [ids for ids, _, _ in one_by_one(loaded, PROMPTS[:6], 25)]
    return dataclasses.replace(loaded, eos_token_ids=frozenset(row[-1] for row in rows))


def test_replies_are_those_of_one_by_one_in_the_same_order(tiny):
    loaded = with_more_ends(tiny)
    expected = one_by_one(loaded, PROMPTS, 25)
    lengths = {len(ids) for ids, _, _ in expected}
    assert len(lengths) > 5
    assert {reason for *_, reason in expected} == {"stop", "length"}
    assert as_tuples(generate_batch(loaded, PROMPTS, max_tokens=25)) == expected


def test_a_long_prompt_in_chunks_makes_no_difference(tiny, monkeypatch):
    monkeypatch.setattr(batch, "PREFILL_STEP", 4)
    assert as_tuples(generate_batch(tiny, PROMPTS, max_tokens=8)) == one_by_one(tiny, PROMPTS, 8)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 10**6), (7, 10**6), (64, 100), (64, 1)])
def test_how_many_rows_run_together_makes_no_difference(tiny, monkeypatch, rows, tokens):
    monkeypatch.setattr(batch, "BATCH_ROWS", rows)
    monkeypatch.setattr(batch, "BATCH_TOKENS", tokens)
    assert as_tuples(generate_batch(tiny, PROMPTS, max_tokens=8)) == one_by_one(tiny, PROMPTS, 8)


def test_batches_hold_rows_of_like_length_within_both_limits(monkeypatch):
    monkeypatch.setattr(batch, "BATCH_ROWS", 3)
    monkeypatch.setattr(batch, "BATCH_TOKENS", 100)
    lengths = [10, 60, 12, 40, 11, 9, 45, 200]
    assert list(batch._batches(lengths)) == [[5, 0, 4], [2, 3], [6], [1], [7]]


def test_each_row_has_its_own_room_in_the_context(tiny):
    loaded = dataclasses.replace(tiny, eos_token_ids=frozenset())
    prompts = [[5] * (CONTEXT - 2), [6] * (CONTEXT - 9)]
    replies = generate_batch(loaded, prompts, max_tokens=6)
    assert [len(reply.ids) for reply in replies] == [2, 6]


@pytest.mark.parametrize("window", [8, 64])
def test_layers_with_a_window_run_as_a_batch_too(tiny, tmp_path, window):
    copy = shutil.copytree(tiny.path, tmp_path / "model")
    config = tiny.config | {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": window,
    }
    (copy / "config.json").write_text(json.dumps(config))
    loaded = with_more_ends(load_model(copy))
    expected = one_by_one(loaded, PROMPTS, 20)
    assert as_tuples(generate_batch(loaded, PROMPTS, max_tokens=20)) == expected


def test_a_model_with_other_caches_gets_its_prompts_one_by_one(tiny, monkeypatch):
    monkeypatch.setattr(batch, "_batch_caches", lambda *_: None)
    expected = one_by_one(tiny, PROMPTS[:5], 6)
    assert as_tuples(generate_batch(tiny, PROMPTS[:5], max_tokens=6)) == expected


def test_progress_counts_up_to_the_number_of_prompts(tiny):
    seen = []
    generate_batch(
        with_more_ends(tiny), PROMPTS, max_tokens=12, progress=lambda *args: seen.append(args)
    )
    done = [count for count, _ in seen]
    assert done == sorted(done)
    assert len(done) > 4
    assert seen[-1] == (len(PROMPTS), len(PROMPTS))
    assert {total for _, total in seen} == {len(PROMPTS)}


def test_no_prompts_have_no_replies(tiny):
    assert generate_batch(tiny, [], max_tokens=5) == []


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([[5], []], 5, "the prompt is empty"),
        ([[5]], 0, "max_tokens must be 1 or more"),
        ([[5], [5] * CONTEXT], 5, "the model's context"),
    ],
)
def test_what_cannot_be_generated_is_refused(tiny, prompts, max_tokens, message):
    with pytest.raises(UsageError, match=message):
        generate_batch(tiny, prompts, max_tokens=max_tokens)
