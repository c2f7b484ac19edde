import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.errors import UsageError
from macai.generate.stop import StopMatcher


def run(stop, pieces):
    matcher = StopMatcher(stop)
    given = ""
    for piece in pieces:
        text, matched = matcher.add(piece)
        given += text
        if matched:
            return given, True
    return given + matcher.flush(), False


def character_by_character(stop, text):
    for end in range(len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            return text[: end - len(max(ending, key=len))], True
    return text, False


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("ab", max_size=3), max_size=12),
)
def test_how_the_text_is_cut_makes_no_difference(stop, pieces):
    assert run(stop, pieces) == character_by_character(stop, "".join(pieces))


@pytest.mark.parametrize("pieces", [["aba"], ["ab", "a"], ["a", "b", "a"]])
def test_the_stop_string_that_is_complete_first_counts(pieces):
    assert run(["aba", "b"], pieces) == ("a", True)


def test_what_may_begin_a_stop_string_is_held_back_and_released():
    matcher = StopMatcher(["###"])
    assert matcher.add("one #") == ("one ", False)
    assert matcher.add("#") == ("", False)
    assert matcher.add(" two") == ("## two", False)


def test_the_stop_string_and_what_follows_are_not_given():
    assert run(["\nUser:"], ["Hi.\n", "Us", "er: more"]) == ("Hi.", True)


def test_what_is_held_at_the_end_is_given():
    assert run(["END"], ["the EN"]) == ("the EN", False)


def test_no_stop_strings_hold_nothing_back():
    assert StopMatcher(()).add("text") == ("text", False)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="stop string is empty"):
        StopMatcher(["x", ""])
