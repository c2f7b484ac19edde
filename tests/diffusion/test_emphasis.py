import json
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from macai.diffusion.emphasis import MAX_WEIGHT, Segment, parse_prompt, render_prompt
from macai.errors import UsageError

GOLDEN = json.loads(Path("tests/goldens/prompt_emphasis.json").read_text(encoding="utf-8"))


def joined(pieces):
    """The pieces that have text, neighbours of one weight as one."""
    full = [(text, weight) for text, weight in pieces if text] or [("", 1.0)]
    groups = groupby(full, key=lambda piece: piece[1])
    return [Segment("".join(text for text, _ in group), weight) for weight, group in groups]


def test_emphasis_is_read_as_diffusers_community_pipeline_reads_it():
    assert len(GOLDEN["rows"]) > 400
    for text, pieces in GOLDEN["rows"]:
        [section] = parse_prompt(text)
        expected = joined(pieces)
        assert [s.text for s in section] == [s.text for s in expected], text
        weights = [s.weight for s in section]
        assert weights == pytest.approx([s.weight for s in expected], rel=1e-12), text


@given(st.text().filter(lambda t: not set(t) & set("()[]\\") and "BREAK" not in t))
def test_a_prompt_without_the_syntax_is_one_segment_of_its_own_text(text):
    assert parse_prompt(text) == [[Segment(text)]]


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("a BREAK b", ["a", "b"]),
        ("aBREAKb BREAKS break", ["aBREAKb BREAKS break"]),
        ("BREAK a  BREAK", ["", "a", ""]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("a,BREAK\n b", ["a,", "b"]),
        (r"a B\REAK b", ["a BREAK b"]),
    ],
)
def test_break_begins_a_section_and_takes_the_space_around_it(text, sections):
    assert parse_prompt(text) == [[Segment(section)] for section in sections]


def test_a_weight_holds_on_both_sides_of_a_break():
    assert parse_prompt("(a BREAK b:1.5)") == [[Segment("a", 1.5)], [Segment("b", 1.5)]]


def test_spaces_around_a_weight_are_no_text():
    assert parse_prompt("(a: 1.5 )") == [[Segment("a", 1.5)]]


@pytest.mark.parametrize(
    "weight",
    [
        "nan",
        "NaN",
        "inf",
        "-Infinity",
        "1e9",
        "1E9",
        ".5e-3",
        "1.2.3",
        ".",
        "101",
        "-1000",
        "9" * 400,
    ],
)
def test_an_absurd_weight_is_refused(weight):
    with pytest.raises(UsageError, match="is no number from -100 to 100") as raised:
        parse_prompt(f"a (dog:{weight}) runs")
    assert weight[:40] in raised.value.message
    assert "(word:1.2)" in raised.value.hint


def test_weights_that_multiply_beyond_the_bound_are_refused():
    assert parse_prompt("((a:10):10)") == [[Segment("a", MAX_WEIGHT)]]
    with pytest.raises(UsageError, match="110 in 'a'"):
        parse_prompt("(((a:10):10))")
    with pytest.raises(UsageError, match="is no number"):
        parse_prompt("(" * 60 + "a")


def test_an_absurd_number_that_weighs_nothing_is_text():
    assert parse_prompt("a:nan) b:1e9)") == [[Segment("a:nan) b:1e9)")]]
    assert parse_prompt("(nan:1.2) (a:nan b)") == [
        [Segment("nan", 1.2), Segment(" "), Segment("a:nan b", 1.1)]
    ]


ATOMS = st.sampled_from(
    [*"()[]\\: a,\n\t", ":1.2)", ":.5)", " BREAK ", "BREAK", "\\BREAK", "dog", "é", "1"]
)


@given(st.lists(ATOMS, max_size=30).map("".join) | st.text())
@example("a \\BREAK\\ b")
@example("(a BREAK:1.3)BREAK( b)")
def test_what_was_read_is_read_again_from_what_is_rendered(text):
    try:
        sections = parse_prompt(text)
    except UsageError:
        return
    assert parse_prompt(render_prompt(sections)) == sections


TEXTS = st.text(st.sampled_from("ab ()[]\\:,1.é"), min_size=1, max_size=12)
WEIGHTS = st.floats(-100, 100) | st.sampled_from([1.0, 1.1, 0.5, 1e-7, 1 / 3])


@given(st.lists(st.lists(st.tuples(TEXTS, WEIGHTS), max_size=4), min_size=1, max_size=3))
def test_any_texts_and_weights_can_be_written_and_read(sections):
    segments = [joined(section) for section in sections]
    assert parse_prompt(render_prompt(segments)) == segments
