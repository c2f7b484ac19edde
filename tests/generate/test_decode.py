import dataclasses
import json
import shutil

import mlx.core as mx
import pytest

from macai.errors import UsageError
from macai.generate.cache import PromptCache
from macai.generate.decode import context_length, generate
from macai.generate.sample import make_sampler
from macai.generate.text import decode
from macai.models.load import load_model
from tests.tiny import CONTEXT

PROMPT = [1, 84, 104, 101, 50, 77, 99]


def greedy_without_cache(loaded, prompt_ids, max_tokens):
    """The definition: every step from scratch."""
    ids = list(prompt_ids)
    for _ in range(max_tokens):
        ids.append(int(mx.argmax(loaded.model(mx.array([ids]))[0, -1]).item()))
        if ids[-1] in loaded.eos_token_ids:
            break
    return ids[len(prompt_ids) :]


def ids_of(tokens):
    return [token.id for token in tokens]


def without_end(loaded):
    return dataclasses.replace(loaded, eos_token_ids=frozenset())


def ending_at(loaded, *ids):
    return dataclasses.replace(loaded, eos_token_ids=frozenset(ids))


@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_greedy_tokens_are_those_of_computing_every_step_from_scratch(tiny, length):
    prompt = [(7 * i + 3) % 400 for i in range(length)]
    assert ids_of(generate(tiny, prompt, max_tokens=25)) == greedy_without_cache(tiny, prompt, 25)


@pytest.mark.parametrize("prefill_step", [1, 3, 6, 7, 100])
def test_chunks_of_the_prompt_make_no_difference(tiny, prefill_step):
    whole = ids_of(generate(tiny, PROMPT, max_tokens=20))
    assert ids_of(generate(tiny, PROMPT, max_tokens=20, prefill_step=prefill_step)) == whole


def test_log_probabilities_are_those_of_the_model(tiny):
    token = next(generate(tiny, PROMPT, max_tokens=1))
    logits = tiny.model(mx.array([PROMPT]))[0, -1]
    assert token.logprob == pytest.approx(
        float((logits - mx.logsumexp(logits))[token.id]), abs=1e-4
    )


def test_the_limit_ends_a_reply(tiny):
    tokens = list(generate(without_end(tiny), PROMPT, max_tokens=5))
    assert [token.finish_reason for token in tokens] == [None] * 4 + ["length"]


def test_an_end_token_ends_a_reply_and_is_not_printed(tiny):
    free = ids_of(generate(without_end(tiny), PROMPT, max_tokens=20))
    end = next(i for i in free if i not in free[:3])
    tokens = list(generate(ending_at(tiny, end), PROMPT, max_tokens=20))
    assert ids_of(tokens) == free[: free.index(end) + 1]
    assert tokens[-1].finish_reason == "stop"
    text = "".join(token.text for token in tokens)
    assert text == decode(tiny.tokenizer, free[: free.index(end)])


def test_a_stop_string_across_tokens_ends_a_reply_and_is_not_printed(tiny):
    tokens = list(generate(without_end(tiny), PROMPT, max_tokens=30))
    text = "".join(token.text for token in tokens)
    ends = [len("".join(t.text for t in tokens[:n])) for n in range(len(tokens))]
    boundary = next(e for e in ends if e > 8 and text.find(text[e - 2 : e + 2]) == e - 2)
    stop = text[boundary - 2 : boundary + 2]
    stopped = list(generate(without_end(tiny), PROMPT, max_tokens=30, stop=[stop]))
    assert "".join(token.text for token in stopped) == text[: text.index(stop)]
    assert stopped[-1].finish_reason == "stop"
    assert len(stopped) < len(tokens)


def test_text_held_back_for_a_stop_string_comes_with_the_last_token(tiny):
    tokens = list(generate(without_end(tiny), PROMPT, max_tokens=6))
    text = "".join(token.text for token in tokens)
    held = list(generate(without_end(tiny), PROMPT, max_tokens=6, stop=[text[-3:] + "\0"]))
    assert "".join(token.text for token in held) == text
    assert held[-1].finish_reason == "length"


def test_the_same_seed_draws_the_same_tokens(tiny):
    def draw(seed):
        mx.random.seed(seed)
        sampler = make_sampler(temperature=1.0, top_p=0.9)
        return ids_of(generate(tiny, PROMPT, max_tokens=20, sampler=sampler))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_cache_gives_the_same_reply_and_keeps_what_prompts_share(tiny):
    cache = PromptCache(tiny.model)
    first = ids_of(generate(tiny, PROMPT, max_tokens=10, cache=cache))
    longer = [*PROMPT, *first, 55, 66]
    assert cache.ids == [*PROMPT, *first[:-1]]
    fed = count_feeds(cache)
    assert ids_of(generate(tiny, longer, max_tokens=10, cache=cache)) == ids_of(
        generate(tiny, longer, max_tokens=10)
    )
    assert fed[:2] == [2, 1]  # the last of the reply and 55; then 66, for its logits


@pytest.mark.parametrize("changed", [[1, 84, 104, 9, 9, 9], [300, 5], PROMPT, PROMPT[:3]])
def test_a_cache_forgets_what_another_prompt_does_not_share(tiny, changed):
    cache = PromptCache(tiny.model)
    list(generate(tiny, PROMPT, max_tokens=10, cache=cache))
    expected = ids_of(generate(tiny, changed, max_tokens=10))
    assert ids_of(generate(tiny, changed, max_tokens=10, cache=cache)) == expected


def test_a_cache_survives_a_reply_that_is_broken_off(tiny):
    cache = PromptCache(tiny.model)
    tokens = generate(tiny, PROMPT, max_tokens=10, cache=cache)
    said = [next(tokens).id for _ in range(3)]
    tokens.close()
    longer = [*PROMPT, *said, 7]
    expected = ids_of(generate(tiny, longer, max_tokens=10))
    assert ids_of(generate(tiny, longer, max_tokens=10, cache=cache)) == expected


def test_a_cache_survives_an_interrupt_inside_the_model(tiny, monkeypatch):
    cache = PromptCache(tiny.model)
    list(generate(tiny, PROMPT, max_tokens=3, cache=cache))
    with monkeypatch.context() as patch:
        patch.setattr(cache.layers[1], "update_and_fetch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(generate(tiny, [*PROMPT, 5, 6], max_tokens=3, cache=cache))
    expected = ids_of(generate(tiny, [*PROMPT, 5, 6, 7], max_tokens=10))
    assert ids_of(generate(tiny, [*PROMPT, 5, 6, 7], max_tokens=10, cache=cache)) == expected


def test_layers_that_cannot_go_back_are_computed_anew(tiny, tmp_path):
    loaded = with_config(
        tiny, tmp_path, layer_types=["full_attention", "sliding_attention"], sliding_window=8
    )
    cache = PromptCache(loaded.model)
    list(generate(loaded, PROMPT, max_tokens=20, cache=cache))
    other = [*PROMPT, 3, 2, 1]
    assert ids_of(generate(loaded, other, max_tokens=9, cache=cache)) == ids_of(
        generate(loaded, other, max_tokens=9)
    )


def test_a_prompt_longer_than_the_context_is_refused_at_once(tiny):
    with pytest.raises(UsageError, match=f"{CONTEXT} tokens, the model's context {CONTEXT}"):
        generate(tiny, [5] * CONTEXT, max_tokens=1)


def test_a_reply_ends_where_the_context_does(tiny):
    tokens = list(generate(without_end(tiny), [5] * (CONTEXT - 3), max_tokens=50))
    assert len(tokens) == 3
    assert tokens[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {"max_tokens": 5}, "the prompt is empty"),
        (PROMPT, {"max_tokens": 0}, "max_tokens must be 1 or more, got 0"),
        (PROMPT, {"max_tokens": -3}, "max_tokens must be 1 or more, got -3"),
        (PROMPT, {"max_tokens": 5, "stop": [""]}, "a stop string is empty"),
    ],
)
def test_what_cannot_be_generated_is_refused_at_once(tiny, prompt, options, message):
    with pytest.raises(UsageError, match=message):
        generate(tiny, prompt, **options)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"text_config": None}, None),
        ({}, None),
    ],
)
def test_the_context_is_read_from_the_config(config, length):
    assert context_length(config) == length


def test_the_next_token_is_under_way_before_one_is_read(tiny):
    cache = PromptCache(tiny.model)
    fed = count_feeds(cache)
    tokens = generate(tiny, PROMPT, max_tokens=5, cache=cache)
    assert fed == []
    next(tokens)
    assert fed == [len(PROMPT) - 1, 1, 1]
    assert len(list(tokens)) == 4
    assert fed == [len(PROMPT) - 1, *[1] * 5]  # none beyond the last


def count_feeds(cache):
    fed, feed = [], cache.feed

    def counted(ids):
        fed.append(ids.size)
        return feed(ids)

    cache.feed = counted
    return fed


def interrupt(*_):
    raise KeyboardInterrupt


def with_config(loaded, folder, **changes):
    copy = shutil.copytree(loaded.path, folder / "model")
    (copy / "config.json").write_text(json.dumps(loaded.config | changes))
    return load_model(copy)
