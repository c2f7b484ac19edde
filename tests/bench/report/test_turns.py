"""Reports of two versions that were measured in turns: their samples are pairs."""

import copy

import pytest

from macai.bench.report.compare import compare
from macai.bench.report.shifts import FEWEST
from tests.bench.samples import report, reports_in_turns

DECODE = "generate/tiny/decode/context=all"


def significant(first, second):
    return {
        d.figure["id"]: d.verdict for d in compare(first, second).differences if d.is_significant
    }


def test_a_tenth_more_time_for_decoding_is_found_whatever_the_machine_does_meanwhile():
    found = [significant(*reports_in_turns(seed, slower=1.1)) for seed in range(100)]
    assert sum(f.get(DECODE) == "slower" for f in found) >= 95
    assert sum(any("decode" not in name for name in f) for f in found) <= 5


def test_code_that_did_not_change_has_a_significant_figure_in_one_run_of_twenty_at_most():
    runs = [reports_in_turns(1000 + seed) for seed in range(200)]
    assert len(compare(*runs[0]).differences) == 45 + 14  # and fourteen that stand for three each
    assert sum(bool(significant(*run)) for run in runs) <= 10


def test_the_same_samples_that_are_not_known_as_pairs_do_not_show_it():
    found = 0
    for seed in range(20):
        first, second = reports_in_turns(seed, slower=1.1)
        del second["runs"][0]["settings"]["beside"]
        comparison = compare(first, second)
        assert not comparison.in_turns
        assert DECODE not in [d.figure["id"] for d in comparison.differences]
        found += bool(significant(first, second))
    assert found <= 10


def test_the_other_way_around_it_is_faster():
    first, second = reports_in_turns(1, slower=1.1)
    assert significant(second, first)[DECODE] == "faster"
    [whole] = [d for d in compare(first, second).differences if d.figure["id"] == DECODE]
    assert whole.change == pytest.approx(1 / 1.1 - 1, abs=0.03)
    assert whole.after / whole.before == pytest.approx(1 / 1.1, abs=0.05)


def test_one_size_that_is_slower_is_found_by_itself():
    first, second = reports_in_turns(2, spread=0.01)
    [one] = [f for f in second["runs"][0]["figures"] if f["id"].endswith("decode/context=64")]
    one["values"] = [0.85 * value for value in one["values"]]
    assert significant(first, second) == {one["id"]: "slower"}


def test_a_machine_that_was_slower_before_each_sample_of_one_explains_it():
    first, second = reports_in_turns(3, slower=1.1)
    assert DECODE in significant(first, second)
    for figure in second["runs"][0]["figures"]:
        speeds = figure["machine_flops_per_second"]
        figure["machine_flops_per_second"] = [0.9 * speed for speed in speeds]
    assert significant(first, second) == {}


def test_what_others_left_of_the_processors_explains_nothing_as_both_met_it():
    first, second = reports_in_turns(4, slower=1.1)
    for made, taken in ((first, 0.0), (second, 6.0)):
        for figure in made["runs"][0]["figures"]:
            figure["others"] = [taken] * len(figure["values"])
    assert DECODE in significant(first, second)


def test_memory_that_grew_is_more():
    first, second = reports_in_turns(5)
    for figure in second["runs"][0]["figures"]:
        if figure["unit"] == "bytes":
            figure["values"] = [1.1 * value for value in figure["values"]]
    assert set(significant(first, second).values()) == {"more"}
    assert len(significant(first, second)) == 3  # each size for itself


def test_a_run_that_was_stopped_between_two_of_a_pair_is_compared_without_that_one():
    first, second = reports_in_turns(6, slower=1.1)
    whole = copy.deepcopy(first)
    for figure in second["runs"][0]["figures"][20:]:
        for name in ("values", "machine_flops_per_second", "machine_bytes_per_second"):
            figure[name].pop()
            [other] = [f for f in whole["runs"][0]["figures"] if f["id"] == figure["id"]]
            other[name].pop()

    def said(x, y):
        return [(d.figure["id"], d.change, d.p) for d in compare(x, y).differences]

    assert said(first, second) == said(whole, second)


def test_of_three_pairs_nothing_is_said():
    found = compare(*reports_in_turns(7, slower=3.0, rounds=FEWEST - 1)).differences
    assert {(d.verdict, d.p) for d in found} == {("unknown", None)}


def test_a_report_beside_itself_is_the_same():
    made, _ = reports_in_turns(8)
    assert significant(made, made) == {}
    assert not compare(report(1), report(1)).in_turns
