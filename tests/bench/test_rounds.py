import subprocess
from functools import partial

import pytest

from macai.bench import sections as processes
from macai.bench.probe import Probe, Speed
from macai.bench.rounds import FEWEST, Turn, measure, sustain
from macai.bench.sections import Sections
from macai.errors import ModelError
from tests.bench.turns import (
    open_defect,
    open_dying,
    open_nothing,
    open_pairs,
    open_single,
    open_slow,
    open_two,
)


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """The processes that a test starts: none may be left after it."""
    found = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            found.append(self)

    monkeypatch.setattr(processes.subprocess, "Popen", Noted)
    yield found
    assert all(process.returncode is not None for process in found)


def run(openers, *, rounds=2, budget=1e9, stop=lambda: False):
    with Sections(openers) as sections:
        [result] = measure(
            [sections],
            list(openers),
            lambda: Speed(2e11, 1e10),
            rounds=rounds,
            budget_seconds=budget,
            progress=lambda what, done, total: None,
            should_stop=stop,
        )
    return result


def test_cases_of_all_sections_take_turns_and_every_other_round_goes_backwards(tmp_path, started):
    log = tmp_path / "log"
    result = run({"x": partial(open_two, log, "a", "b"), "y": partial(open_two, log, "c", "d")})
    assert "".join(log.read_text().split()) == "abcd" + "abcd" + "dcba"
    assert len(started) == 2  # a process a section
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


def run_two(first, second, *, rounds=2, budget=1e9, stop=lambda: False):
    """Measure two versions, each as its opener of the one section says."""
    with Sections({"x": first}) as one, Sections({"x": second}) as other:
        return measure(
            [one, other],
            ["x"],
            lambda: Speed(2e11, 1e10),
            rounds=rounds,
            budget_seconds=budget,
            progress=lambda what, done, total: None,
            should_stop=stop,
        )


def test_two_versions_take_turns_sample_by_sample_and_change_who_is_first(tmp_path):
    log = tmp_path / "log"
    runs = run_two(*(partial(open_pairs, log, side, "ab") for side in "12"))
    assert log.read_text().split() == [
        *("a1", "a2", "b1", "b2"),  # to warm up
        *("a1", "a2", "b1", "b2"),
        *("b2", "b1", "a2", "a1"),
    ]
    assert [run.rounds for run in runs] == [2, 2]
    assert [len(m.values) for run in runs for m in run.measured.values()] == [2, 2, 2, 2]


def test_what_only_one_version_can_measure_is_measured_of_that_one(tmp_path):
    log = tmp_path / "log"
    runs = run_two(partial(open_pairs, log, "1", "b"), partial(open_pairs, log, "2", "ab"))
    assert log.read_text().split()[:3] == ["b1", "b2", "a2"]
    assert [[turn.case for turn in run.turns] for run in runs] == [[0], [1, 0]]


def test_of_two_versions_the_same_is_left_out(tmp_path):
    openers = [partial(open_slow, tmp_path / side) for side in "12"]
    runs = run_two(*openers, rounds=FEWEST, budget=0.0)
    assert {tuple(run.left_out) for run in runs} == {("x, size huge", "x, size large")}
    for side in "12":
        assert (tmp_path / side).read_text().split()[3:] == ["small"] * FEWEST


def test_two_versions_that_are_stopped_keep_what_they_have(tmp_path):
    asked = iter([False] * 7 + [True])
    openers = [partial(open_pairs, tmp_path / "log", side, "ab") for side in "12"]
    runs = run_two(*openers, stop=lambda: next(asked))
    assert [run.complete for run in runs] == [False, False]
    assert [len(m.values) for run in runs for m in run.measured.values()] == [1, 1, 1, 0]
