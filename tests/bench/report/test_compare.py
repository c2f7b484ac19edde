import pytest

from macai.bench.report.compare import compare
from macai.bench.report.document import merged
from macai.errors import ReportError
from tests.bench.samples import report


def significant(first, second):
    return [d for d in compare(first, second).differences if d.is_significant]


@pytest.mark.parametrize("drift", [0.0, 0.02])
@pytest.mark.parametrize("spread", [0.01, 0.05, 0.2])
def test_runs_of_unchanged_code_differ_significantly_in_no_figure(spread, drift):
    false = 0
    for seed in range(25):
        first = report(2 * seed, spread=spread, drift=drift)
        second = report(2 * seed + 1, spread=spread, drift=drift)
        assert len(compare(first, second).differences) == 35
        false += len(significant(first, second)) > 0
    assert false <= 1  # of 25 pairs: Holm allows one in twenty, and the doubts take more


def test_a_tenth_more_time_for_decoding_is_significant_and_nothing_else_is():
    detected = 0
    for seed in range(20):
        first, second = (report(seed + 100 * k, slower=1 + 0.1 * k, rounds=10) for k in (0, 1))
        found = significant(first, second)
        assert {(d.figure["name"], d.verdict) for d in found} == {("decode", "slower")}, seed
        assert all(d.change == pytest.approx(1 / 1.1 - 1, abs=0.05) for d in found)
        detected += len(found)
    assert detected >= 85  # of 100


def test_a_tenth_less_is_found_too():
    found = significant(report(1, slower=1.1), report(2))
    assert {(d.figure["name"], d.verdict) for d in found} == {("decode", "faster")}


@pytest.mark.parametrize("machine", [0.6, 0.9, 1.2, 2.0])
def test_a_machine_that_is_slower_as_a_whole_makes_no_figure_significant(machine):
    for seed in range(10):
        assert significant(report(seed), report(seed + 50, machine=machine)) == []


def test_without_probes_such_a_machine_would_pass_for_a_change():
    first, second = (report(k, machine=1 + 0.5 * k, probed=False) for k in (0, 1))
    assert len(significant(first, second)) > 20


def test_a_decoder_that_is_half_as_fast_is_found_on_a_machine_that_is_slower_by_a_fifth():
    found = significant(report(1), report(2, machine=1.2, slower=2.0))
    assert {d.figure["name"] for d in found} == {"decode"}


def test_other_programs_that_took_a_processor_explain_what_is_slower():
    first, second = report(1, probed=False), report(2, probed=False, slower=1.5)
    assert significant(first, second)
    for made, taken in ((first, 0.0), (second, 6.0)):
        for figure in made["runs"][0]["figures"]:
            figure["others"] = [taken] * len(figure["values"])
    assert significant(first, second) == []


def test_memory_that_grew_by_a_tenth_is_significant_whatever_the_machine_does():
    first, second = report(1), report(2, machine=3.0)
    for figure in second["runs"][0]["figures"]:
        if figure["unit"] == "bytes":
            figure["values"] = [1.1 * value for value in figure["values"]]
    assert {d.verdict for d in significant(first, second)} == {"more"}


def test_a_cache_that_kept_a_few_megabytes_more_is_the_same():
    first, second = report(1), report(2)
    for made, held in ((first, 5.9e6), (second, 9.9e6)):
        for figure in made["runs"][0]["figures"]:
            if figure["unit"] == "bytes":
                figure["values"] = [held] * len(figure["values"])
    assert significant(first, second) == []


def test_what_differs_by_less_than_a_thirtieth_is_the_same():
    assert significant(report(1, spread=0.001), report(2, spread=0.001, slower=1.02)) == []


def test_of_three_samples_nothing_is_said():
    found = compare(report(1, rounds=3), report(2, rounds=3, slower=3.0)).differences
    assert {d.verdict for d in found} == {"unknown"}
    assert {d.p for d in found} == {None}


def test_figures_that_only_one_report_has_are_named():
    first, second = report(1), report(2)
    gone = second["runs"][0]["figures"].pop(0)
    assert compare(first, second).missing == [gone["id"]]


def test_reports_of_nothing_in_common_or_of_several_runs_are_refused():
    first, second = report(1), report(2)
    for figure in second["runs"][0]["figures"]:
        figure["id"] = "other " + figure["id"]
    with pytest.raises(ReportError, match="no figure in common"):
        compare(first, second)
    with pytest.raises(ReportError, match="2 runs"):
        compare(first, merged(first, second))
