"""What a conversation does with the functions of a package."""

import numpy as np
import pytest

from macai.coreml.manifest import FunctionInfo, Manifest
from macai.coreml.session import Session
from macai.errors import PackageError

CONTEXT = 64


def manifest(*prefills: int) -> Manifest:
    def function(tokens: int) -> FunctionInfo:
        return FunctionInfo(tokens=tokens, inputs={}, outputs={})

    return Manifest(
        name="m",
        package="m.mlpackage",
        sha256="",
        bytes=0,
        functions={f"prefill_{n}": function(n) for n in prefills} | {"decode": function(1)},
        states={},
        context=CONTEXT,
        vocab_size=9,
        eos_token_ids=[2],
        bos_token_id=None,
        precision="fp16",
        weights="fp16",
        source={"model": "m"},
        macai="0",
    )


class Recorder:
    """A runner whose state is the ids it was given, place by place."""

    def __init__(self):
        self.calls, self.state = [], np.full(CONTEXT, -1)

    def run(self, function, inputs):
        ids, position = inputs["inputIds"][0], int(inputs["position"][0])
        assert position + len(ids) <= CONTEXT
        self.calls.append((function, position, int(inputs.get("last", [0])[0]) + 1))
        self.state[position : position + len(ids)] = ids
        return np.array([position, ids[int(inputs.get("last", [0])[0])]], np.float32)

    def reset(self):
        self.state[:] = -1


def session(*prefills):
    runner = Recorder()
    return Session(manifest(*prefills), runner), runner


def test_a_long_prompt_goes_in_the_longest_chunks_and_its_rest_in_the_shortest_that_fits():
    talk, runner = session(8, 16)
    talk.feed(range(1, 39))
    assert runner.calls == [("prefill_16", 0, 16), ("prefill_16", 16, 16), ("prefill_8", 32, 6)]
    assert talk.ids == list(range(1, 39))
    assert list(runner.state[:38]) == list(range(1, 39))


def test_a_few_tokens_go_one_by_one():
    talk, runner = session(16)
    talk.feed([4, 5, 6])
    assert runner.calls == [("decode", 0, 1), ("decode", 1, 1), ("decode", 2, 1)]


def test_where_no_chunk_fits_before_the_end_of_the_context_tokens_go_one_by_one():
    talk, runner = session(16)
    talk.feed(range(100, 150))
    talk.feed(range(150, 164))
    assert {name for name, position, _ in runner.calls if position > 48} == {"decode"}
    assert list(runner.state) == list(range(100, 164))


def test_more_than_the_context_is_refused_and_nothing_is_run():
    talk, runner = session(16)
    talk.feed(range(60))
    before = list(runner.calls)
    with pytest.raises(PackageError, match="65 tokens, and the package's context is 64"):
        talk.feed(range(5))
    assert runner.calls == before


def test_feed_returns_the_logits_after_the_last_token():
    talk, _ = session(16)
    assert list(talk.feed(range(20, 30))) == [0, 29]
    assert list(talk.feed([7])) == [10, 7]


def test_what_a_new_prompt_shares_with_the_old_is_kept():
    talk, runner = session(8)
    talk.feed([1, 2, 3, 4, 5])
    assert talk.keep_prefix([1, 2, 3, 9, 9, 9]) == 3
    runner.calls.clear()
    talk.feed([9, 9, 9])
    assert runner.calls[0][1] == 3
    assert list(runner.state[:6]) == [1, 2, 3, 9, 9, 9]


def test_of_a_prompt_that_is_all_known_the_last_token_is_fed_again():
    talk, _ = session(8)
    talk.feed([1, 2, 3])
    assert talk.keep_prefix([1, 2, 3]) == 2


def test_logits_that_are_no_numbers_are_an_error_not_a_reply():
    talk, runner = session(8)
    runner.run = lambda function, inputs: np.array([1, np.nan], np.float32)
    with pytest.raises(PackageError, match="not finite"):
        talk.feed([1])
    assert talk.ids == []


def test_reset_forgets_the_ids_and_the_state():
    talk, runner = session(8)
    talk.feed([1, 2, 3])
    talk.reset()
    assert talk.ids == []
    assert set(runner.state) == {-1}
