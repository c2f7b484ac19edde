import json
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from macai.diffusion.tokenizer import ClipTokenizer, Difference, WordDifference
from macai.diffusion.tokenizer.clusters import clusters

ROWS = json.loads(Path("tests/goldens/clip_tokenizer.json").read_text(encoding="utf-8"))["rows"]
FIRST = ClipTokenizer.shipped()
SECOND = ClipTokenizer.shipped(padding="!")


def test_ids_are_those_of_apple_s_compiled_tokenizer():
    differ = 0
    for text, sd1, _, swift in ROWS:
        assert FIRST.swift.encode(text) == (sd1 if swift is None else swift), text
        differ += swift is not None
    assert differ > 600  # the golden does not compare the tokenizer with itself


def test_a_prompt_of_plain_words_is_the_same_on_a_device():
    assert not FIRST.differs("A photograph of an astronaut riding a horse")
    assert FIRST.differs("") == Difference()


def test_the_words_that_differ_are_named_once_and_in_order():
    found = FIRST.differs("a Dog. and a café, a Dog.")
    assert found.words == (
        WordDifference("Dog.", ("dog</w>", ".</w>"), ("dog", ".</w>")),
        WordDifference("café,", ("cafÃ©</w>", ",</w>"), ("caf", "é", ",</w>")),
    )
    assert (found.end_cut, found.padding) == (False, False)


def test_a_special_token_is_plain_text_to_swift():
    [word] = FIRST.differs("<|endoftext|>").words
    assert word.hf == ("<|endoftext|>",)
    assert word.swift == ("<", "|", "endof", "text", "|", "></w>")


def test_a_long_prompt_loses_its_end_on_a_device():
    fits, cut = FIRST.swift_ids(["a " * 75, "a " * 76])
    assert fits.tolist() == [49406] + [320] * 75 + [49407]
    assert cut.tolist() == [49406] + [320] * 76
    assert not FIRST.differs("a " * 75)
    assert FIRST.differs("a " * 76) == Difference(end_cut=True)
    assert not FIRST.differs("dog. " + "a " * 73).end_cut
    assert FIRST.differs("dog. " + "a " * 74).end_cut


def test_padding_differs_where_swift_and_the_model_disagree():
    # SD 2.x is trained with "!" and Apple's pipeline pads it with the end token.
    assert SECOND.differs("a dog") == Difference(padding=True)
    assert not SECOND.differs("a dog", padding="!")
    assert SECOND.swift_ids(["a"], padding="!").tolist() == [[49406, 320, 49407] + [0] * 74]
    assert FIRST.swift_ids(["a"], padding="!").tolist() == [[49406, 320, 49407] + [0] * 74]


HARD_WORDS = ["dog", "dog.", "##", "\u0301", "é", "<|endoftext|>", "<|ENDOFTEXT|>", "क्ष", "1", "İ"]
PIECES = st.sampled_from(HARD_WORDS) | st.text(max_size=4)


@given(st.lists(PIECES, max_size=90), st.sampled_from([FIRST, SECOND]))
@example(["a."] + ["a"] * 80, FIRST)
def test_differs_is_false_exactly_when_every_id_is_the_same(words, tokenizer):
    text = " ".join(words)
    same = np.array_equal(tokenizer.ids([text]), tokenizer.swift_ids([text]))
    assert bool(tokenizer.differs(text)) is not same


def test_clusters_are_swift_s_characters():
    # Each line cut by String(...).map { $0 } of Swift 6.0.3.
    for text in (
        "a|👩‍👩‍👧‍👦|b|🇩🇪|🇯🇵",
        "e\u0301|x|\r\n|y",
        "\u1112\u1161\u11ab|각",
        "क्ष|त्रि|य",
        "न्द्र",
        "क्\u200dष|क्\u200c|ष",
        "का|ष",
        "ক্ষ|a",
    ):
        assert clusters(text.replace("|", "")) == text.split("|")
    assert clusters("") == []
