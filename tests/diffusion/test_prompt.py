import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.diffusion.prompt import apply_weights, chunk_prompts
from macai.diffusion.tokenizer import ClipTokenizer
from macai.errors import UsageError

GOLDEN = json.loads(Path("tests/goldens/clip_tokenizer.json").read_text(encoding="utf-8"))
TEXTS = [row[0] for row in GOLDEN["rows"]]
FIRST = ClipTokenizer.shipped()
SECOND = ClipTokenizer.shipped(padding="!")
START, END, COMMA, A, DOG = 49406, 49407, 267, 320, 1929


def chunks_of(prompt, tokenizer=FIRST, **options):
    [[chunks]] = chunk_prompts([prompt], [tokenizer], **options)
    return chunks


def words(chunks):
    """The ids between start and end, a list for each chunk."""
    return [row[1 : row.index(END, 1)] for row in chunks.ids.tolist()]


@pytest.mark.parametrize("tokenizer", [FIRST, SECOND])
def test_without_weights_the_ids_are_those_of_diffusers(tokenizer):
    [found] = chunk_prompts(TEXTS, [tokenizer], weights=False)
    assert np.array_equal([c.ids[0] for c in found], tokenizer.ids(TEXTS))
    assert all(c.ids.shape == (1, 77) and not c.weighted for c in found)


def test_with_weights_a_prompt_that_has_none_gives_the_ids_of_diffusers():
    plain = [text for text in TEXTS if not set(text) & set("()[]\\") and "BREAK" not in text]
    short = [text for text in plain if len(FIRST.encode(text)) <= 75]
    assert len(short) > 500
    for text in short:
        chunks = chunks_of(text)
        assert np.array_equal(chunks.ids, FIRST.ids([text])), text
        assert not chunks.weighted


def test_brackets_are_text_without_weights():
    assert words(chunks_of("(a)", weights=False)) == [FIRST.encode("(a)")] != [[A]]
    assert words(chunks_of("(a)")) == [[A]]
    assert words(chunks_of(r"\(a\)")) == words(chunks_of("(a)", weights=False))


def test_each_token_has_the_weight_of_its_text():
    chunks = chunks_of("a (dog:1.5), [dog] (supercalifragilistic)")
    long = len(FIRST.encode("supercalifragilistic"))
    assert long > 1
    weights = [1, 1, 1.5, 1, 1 / 1.1] + [1.1] * long + [1] * (77 - 5 - long)
    assert chunks.weights.dtype == np.float32
    assert chunks.weights.shape == (1, 77)
    assert chunks.weights[0].tolist() == pytest.approx(weights)
    assert chunks.weighted


def test_a_long_prompt_gets_chunks_of_75_each_with_start_end_and_padding():
    for tokenizer, pad in ((FIRST, END), (SECOND, 0)):
        chunks = chunks_of("dog " * 160, tokenizer)
        assert chunks.ids[:2].tolist() == [[START, *[DOG] * 75, END]] * 2
        assert chunks.ids[2].tolist() == [START, *[DOG] * 10, END] + [pad] * 65
        assert (chunks.ids.dtype, chunks.cut) == (np.int32, "")
    assert len(chunks_of("dog " * 75).ids) == 1
    assert len(chunks_of("dog " * 76).ids) == 2


def test_a_long_prompt_that_may_not_be_long_is_cut_and_says_what_it_lost():
    chunks = chunks_of("a " * 75 + "red dog!", long_prompts=False)
    assert chunks.ids.tolist() == [[START, *[A] * 75, END]]
    assert chunks.cut == "red dog !"
    assert chunks_of("a " * 75 + "dog", weights=False).cut == "dog"
    assert len(chunks_of("a " * 76, weights=False, long_prompts=True).ids) == 2
    assert words(chunks_of("a BREAK dog", long_prompts=False)) == [[A, DOG]]


def test_a_chunk_ends_at_a_comma_when_one_is_near():
    def lengths(before, after, **options):
        text = "a " * before + "," + " dog" * after
        return [len(chunk) for chunk in words(chunks_of(text, **options))]

    assert lengths(60, 30) == [61, 30]
    assert lengths(55, 30) == [56, 30]  # 20 tokens go along
    assert lengths(54, 30) == [75, 10]  # 21 would
    assert lengths(60, 30, comma_backtrack=0) == [75, 16]
    assert lengths(60, 30, comma_backtrack=13) == [75, 16]
    assert lengths(60, 30, comma_backtrack=15) == [61, 30]
    assert lengths(74, 3) == [75, 3]
    assert lengths(75, 3) == [75, 4]  # the chunk is full of words, the comma begins the next
    assert lengths(60, 14) == [75]
    assert lengths(0, 80, comma_backtrack=75) == [1, 75, 5]


def test_a_comma_that_does_not_fit_ends_no_chunk_before_it():
    chunks = chunks_of("a " * 60 + "," + " dog" * 14 + ", a")
    assert [len(chunk) for chunk in words(chunks)] == [75, 2]


def test_break_ends_a_chunk():
    assert words(chunks_of("a BREAK dog BREAK")) == [[A], [DOG]]
    assert words(chunks_of("BREAK dog")) == [[], [DOG]]
    assert words(chunks_of("dog " * 75 + "BREAK a")) == [[DOG] * 75, [A]]
    assert words(chunks_of("a (dog BREAK a:1.5)")) == [[A, DOG], [A]]


def test_every_prompt_of_every_encoder_has_the_same_number_of_chunks():
    bangs = "!!" * 60  # 60 tokens, or 120 where "!" is special
    found = chunk_prompts([bangs, "(a:1.5)"], [FIRST, SECOND])
    assert [[c.ids.shape for c in row] for row in found] == [[(2, 77)] * 2] * 2
    assert [[c.weights.shape for c in row] for row in found] == [[(2, 77)] * 2] * 2
    assert found[0][1].ids[1].tolist() == [START] + [END] * 76
    assert found[1][1].ids[1].tolist() == [START, END] + [0] * 75
    assert found[0][1].weights[1].tolist() == [1] * 77
    assert found[0][1].weights[0, 1] == 1.5


@given(
    st.lists(st.sampled_from(["dog", ",", "(red:1.3)", "[a]", "!", "BREAK"]), max_size=200),
    st.integers(0, 75),
)
def test_chunks_hold_every_token_once_and_in_order(pieces, backtrack):
    for tokenizer in (FIRST, SECOND):
        chunks = chunks_of(" ".join(pieces), tokenizer, comma_backtrack=backtrack)
        bare = {"(red:1.3)": "red", "[a]": "a", "BREAK": ""}
        plain = tokenizer.encode(" ".join(bare.get(p, p) for p in pieces))
        assert [i for chunk in words(chunks) for i in chunk] == plain
        assert (chunks.ids[:, 0] == START).all()
        assert np.isin(chunks.weights, np.float32([1, 1.3, 1 / 1.1])).all()
        assert (chunks.weights[chunks.ids == tokenizer.pad_id] == 1).all()


def test_a_prompt_that_cannot_be_read_is_refused():
    for prompt in ("(a:nan)", "(a:1e9)", "a \udcff"):
        with pytest.raises(UsageError):
            chunk_prompts(["a", prompt], [FIRST])
    with pytest.raises(UsageError):
        chunk_prompts(["a \udcff"], [FIRST], weights=False)
    assert words(chunks_of("(a:nan)", weights=False)) == [FIRST.encode("(a:nan)")]


def states(n=2, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1, (n, 77, 8)).astype(np.float32)


def test_weights_of_one_leave_every_bit_alone():
    ones = np.ones((2, 77), np.float32)
    for dtype in (np.float32, np.float16):
        hidden = states().astype(dtype)
        found = apply_weights(hidden, ones)
        assert found.dtype == dtype
        assert found.tobytes() == hidden.tobytes()
        again = apply_weights(mx.array(hidden), mx.array(ones))
        assert np.array(again).tobytes() == hidden.tobytes()


def test_weighed_states_keep_their_chunk_s_mean_and_proportions():
    hidden, weights = states(), np.ones((2, 77), np.float32)
    weights[0, 3:9] = 1.4
    found = apply_weights(hidden, weights)
    assert np.allclose(found.mean((1, 2)), hidden.mean((1, 2)), rtol=1e-5)
    assert found[1].tobytes() == hidden[1].tobytes()
    ratio = found[0] / hidden[0]
    assert np.allclose(ratio[3:9] / ratio[0], 1.4, rtol=1e-5)
    assert np.ptp(ratio[9:]) < 1e-6
    assert not np.allclose(ratio[0], 1)


def test_mlx_and_numpy_weigh_alike():
    weights = np.random.default_rng(1).uniform(0.5, 1.5, (2, 77)).astype(np.float32)
    expected = apply_weights(states(), weights)
    found = np.array(apply_weights(mx.array(states()), weights))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)
    half = apply_weights(mx.array(states()).astype(mx.bfloat16), weights)
    assert half.dtype == mx.bfloat16
    assert np.allclose(np.array(half.astype(mx.float32)), expected, rtol=0.02, atol=0.02)


def test_states_whose_mean_becomes_zero_stay_finite():
    hidden = np.ones((1, 77, 8), np.float32)
    for found in (
        apply_weights(hidden, np.zeros((1, 77), np.float32)),
        np.array(apply_weights(mx.array(hidden), mx.zeros((1, 77)))),
    ):
        assert not found.any()
