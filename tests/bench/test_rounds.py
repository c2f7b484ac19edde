import multiprocessing
from functools import partial

import pytest

from macai.bench.probe import Probe, Speed
from macai.bench.rounds import FEWEST, Sections, Turn, measure, sustain
from macai.errors import ModelError
from tests.bench.turns import (
    open_defect,
    open_dying,
    open_nothing,
    open_single,
    open_slow,
    open_two,
)


def run(openers, *, rounds=2, budget=1e9, stop=lambda: False):
    with Sections(openers) as sections:
        result = measure(
            sections,
            list(openers),
            lambda: Speed(2e11, 1e10),
            rounds=rounds,
            budget_seconds=budget,
            progress=lambda what, done, total: None,
            should_stop=stop,
        )
    assert multiprocessing.active_children() == []
    return result


def test_cases_of_all_sections_take_turns_and_every_other_round_goes_backwards(tmp_path):
    log = tmp_path / "log"
    result = run({"x": partial(open_two, log, "a", "b"), "y": partial(open_two, log, "c", "d")})
    assert "".join(log.read_text().split()) == "abcd" + "abcd" + "dcba"
    assert result.complete
    assert {len(m.values) for m in result.measured.values()} == {2}  # not what warmed up
    for measured in result.measured.values():
        assert len(measured.speeds) == len(measured.seconds) == len(measured.others) == 2
        assert measured.seconds == sorted(measured.seconds)
        assert set(measured.speeds) == {Speed(2e11, 1e10)}


def test_the_machine_is_measured_in_both_ways():
    first, second = Probe()(), Probe()()
    for a, b in zip(first, second, strict=True):
        assert 0 < a < 1e16
        assert a / 30 < b < 30 * a  # it is a busy machine's as well


def test_what_is_measured_once_is_measured_the_first_time(tmp_path):
    [measured] = run({"x": partial(open_single, tmp_path / "log")}).measured.values()
    assert measured.values == [1.0]


def test_a_spent_budget_leaves_the_fewest_rounds_that_say_something(tmp_path):
    result = run({"x": partial(open_two, tmp_path / "log", "a", "b")}, rounds=50, budget=0.0)
    assert result.left_out == []  # what is no rate is kept: memory, a load
    assert result.rounds == FEWEST
    assert {len(m.values) for m in result.measured.values()} == {FEWEST}


def test_what_takes_longest_is_left_out_where_the_fewest_rounds_would_not_fit(tmp_path):
    log = tmp_path / "log"
    result = run({"x": partial(open_slow, log)}, rounds=FEWEST, budget=0.0)
    assert result.left_out == ["x, size huge", "x, size large"]
    assert log.read_text().split() == ["small", "large", "huge"] + ["small"] * FEWEST
    whole = run({"x": partial(open_slow, log)}, rounds=1)
    assert whole.left_out == []


def test_a_run_that_is_stopped_keeps_what_it_has(tmp_path):
    asked = iter([False] * 5 + [True])
    openers = {"x": partial(open_two, tmp_path / "log", "a", "b")}
    result = run(openers, rounds=9, stop=lambda: next(asked))
    assert not result.complete
    assert sorted(len(m.values) for m in result.measured.values()) == [1, 2]


def test_an_error_of_a_section_is_an_error_of_the_run(tmp_path):
    openers = {"x": partial(open_two, tmp_path / "log", "a", "b"), "y": open_nothing}
    with pytest.raises(ModelError, match="no such model") as caught:
        run(openers)
    assert caught.value.hint == "give another"


def test_a_defect_in_a_section_keeps_its_traceback():
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError: a defect(?s:.)*open_defect"):
        run({"x": open_defect})


def test_a_process_that_is_gone_is_named_with_how_it_ended(tmp_path):
    with pytest.raises(ModelError, match="measured 'x' ended with code -9"):
        run({"x": partial(open_dying, tmp_path / "log")}, rounds=5)


def test_a_sustained_run_goes_on_until_its_time_is_over(tmp_path):
    with Sections({"x": partial(open_single, tmp_path / "log")}) as sections:
        [figures] = sections.open("x")
        curve = sustain(
            sections,
            Turn("x", 0, figures),
            "value",
            seconds=0.3,
            progress=lambda what, done, total: None,
            should_stop=lambda: False,
        )
    assert curve["figure"] == "generate/nothing/load"
    assert set(curve["values"]) == {1.0}
    assert curve["seconds"] == sorted(curve["seconds"])
    assert 0.2 < curve["seconds"][-1] < 5
