import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.bench.json_calls import Rate, parse_call, score_calls, wilson
from macai.errors import DataError

ALARM = '{"intent":"alarm.set","time":"06:30","day":"tomorrow"}'
VOLUME = '{"intent":"volume.set","level":1}'
MUSIC = '{"intent":"music.play"}'


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_values_published_by_newcombe(hits, total, low, high):
    """Statistics in Medicine 17 (1998), 857-872, table I, method 3."""
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_are_where_the_score_test_just_rejects(case):
    hits, total = case
    z = 1.959963984540054
    low, high = wilson(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        distance = abs(hits / total - bound)
        assert distance == pytest.approx(z * math.sqrt(bound * (1 - bound) / total), rel=1e-6)


def test_wilson_is_exact_at_the_ends_and_mirrors():
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    low, high = wilson(2, 9)
    assert wilson(7, 9) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(hits, total):
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(hits, total)


def test_a_slot_that_is_null_is_one_that_is_absent():
    silent = '{"intent":"alarm.set","time":"06:30","day":null}'
    absent = '{"intent":"alarm.set","time":"06:30"}'
    for expected, reply in ((silent, absent), (absent, silent), (silent, silent)):
        score = score_calls([expected], [reply])
        assert score.exact_match == Rate(1, 1)
        assert (score.slots_matched, score.slots_expected, score.slots_predicted) == (1, 1, 1)
    for expected, reply in ((silent, ALARM), (ALARM, silent)):
        assert score_calls([expected], [reply]).exact_match == Rate(0, 1)


def test_the_right_replies_score_one_everywhere():
    score = score_calls([ALARM, MUSIC], [ALARM, MUSIC])
    assert score.exact_match == score.intent_accuracy == score.valid_json == Rate(2, 2)
    assert (score.rows, score.slot_f1, score.slots_matched) == (2, 1.0, 2)


def test_spaces_around_and_the_order_of_keys_do_not_count():
    reply = ' \n{"day": "tomorrow", "time": "06:30", "intent": "alarm.set"}\n'
    assert score_calls([ALARM], [reply]).exact_match == Rate(1, 1)


def test_one_wrong_slot_costs_the_exact_match_and_half_of_the_pairs():
    score = score_calls([ALARM], [ALARM.replace("06:30", "18:30")])
    assert (score.exact_match, score.intent_accuracy) == (Rate(0, 1), Rate(1, 1))
    assert (score.slots_matched, score.slots_expected, score.slots_predicted) == (1, 2, 2)
    assert score.slot_f1 == 0.5


def test_a_missing_and_an_invented_slot_are_weighed_by_f1():
    missing = score_calls([ALARM], ['{"intent":"alarm.set","time":"06:30"}'])
    assert missing.slot_f1 == pytest.approx(2 / 3)
    invented = score_calls([ALARM], [ALARM[:-1] + ',"label":"work"}'])
    assert invented.slot_f1 == pytest.approx(4 / 5)
    assert missing.exact_match == invented.exact_match == Rate(0, 1)


def test_a_wrong_intent_keeps_its_right_slots():
    score = score_calls([ALARM], [ALARM.replace("alarm.set", "timer.start")])
    assert (score.exact_match, score.intent_accuracy) == (Rate(0, 1), Rate(0, 1))
    assert score.slot_f1 == 1.0


def test_rows_without_slots_score_one_unless_slots_are_made_up():
    assert score_calls([MUSIC], [MUSIC]).slot_f1 == 1.0
    assert score_calls([MUSIC], ["music"]).slot_f1 == 1.0
    made_up = score_calls([MUSIC], ['{"intent":"music.play","song":"Northbound"}'])
    assert (made_up.slot_f1, made_up.exact_match) == (0.0, Rate(0, 1))


def test_f1_is_micro_averaged_over_the_pairs_of_all_rows():
    score = score_calls([ALARM, VOLUME], [ALARM, "no"])
    assert score.slot_f1 == pytest.approx(2 * 2 / (3 + 2))
    assert score.valid_json == Rate(1, 2)


@pytest.mark.parametrize("level", ["1.0", "true", '"1"', "null", "[1]"])
def test_values_of_another_type_are_other_values(level):
    score = score_calls([VOLUME], [VOLUME.replace("1", level)])
    assert (score.valid_json, score.exact_match, score.slots_matched) == (Rate(1, 1), Rate(0, 1), 0)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   ",
        "null",
        "[]",
        '"alarm.set"',
        ALARM[:-1],
        ALARM + "}",
        ALARM + "\n" + ALARM,
        "Sure! " + ALARM,
        f"```json\n{ALARM}\n```",
        "{'intent':'alarm.set'}",
        '{"intent":"a","level":NaN}',
        '{"intent":"a","level":-Infinity}',
        '{"intent":"a","level":1e999}',
        '{"intent":"a","intent":"a"}',
        '{"intent":"a","where":{"x":1,"x":2}}',
        '{"intent":"a","level":' + "1" * 5000 + "}",
        '{"intent":' + "[" * 200_000 + "]" * 200_000 + "}",
        '{"a":' * 200_000,
        '{"intent":"a\n"}',
    ],
    ids=range(20),
)
def test_what_is_not_one_plain_object_is_invalid(reply):
    assert parse_call(reply) is None
    score = score_calls([ALARM], [reply])
    assert score.valid_json == score.intent_accuracy == score.exact_match == Rate(0, 1)
    assert (score.slots_predicted, score.slot_f1) == (0, 0.0)


@pytest.mark.parametrize("reply", ["{}", '{"intent":null}', '{"intent":["alarm.set"]}'])
def test_an_object_without_a_usable_intent_is_valid_but_wrong(reply):
    score = score_calls([ALARM], [reply])
    assert (score.valid_json, score.intent_accuracy) == (Rate(1, 1), Rate(0, 1))


def test_inner_objects_are_compared_without_the_order_of_their_keys():
    one = '{"intent":"a","where":{"x":1,"y":[2,3]}}'
    assert score_calls([one], ['{"intent":"a","where":{"y":[2,3],"x":1}}']).slot_f1 == 1.0
    assert score_calls([one], ['{"intent":"a","where":{"y":[3,2],"x":1}}']).slot_f1 == 0.0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Surrogates too: a model's escapes can spell halves of a character.
    | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values))
def test_any_object_matches_itself_however_it_is_written(slots):
    call = slots | {"intent": "a"}
    pretty = json.dumps(dict(reversed(call.items())), indent=2)
    score = score_calls([json.dumps(call, ensure_ascii=False)], [pretty])
    assert score.exact_match == Rate(1, 1)
    assert score.slot_f1 == 1.0


@given(st.text())
def test_no_reply_raises(reply):
    assert score_calls([ALARM], [reply]).rows == 1


def test_bad_expected_rows_are_named_together():
    expected = [ALARM, "hello", '{"level":1}', '{"intent":7}', MUSIC]
    with pytest.raises(DataError, match=r"rows 2, 3, 4: ") as error:
        score_calls(expected, [""] * 5)
    assert error.value.hint


@pytest.mark.parametrize(("expected", "predictions"), [([], []), ([ALARM], []), ([], [ALARM])])
def test_unequal_or_no_rows_are_a_programming_mistake(expected, predictions):
    with pytest.raises(ValueError, match="expected texts"):
        score_calls(expected, predictions)


def test_the_json_report_holds_every_rate_with_its_interval():
    report = score_calls([ALARM, VOLUME], [ALARM, "no"]).to_json()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["rows"] == 2
    low, high = wilson(1, 2)
    half = {"value": 0.5, "low": low, "high": high, "hits": 1, "total": 2}
    assert report["exact_match"] == report["intent_accuracy"] == report["valid_json"] == half
    assert report["slot_f1"] == pytest.approx(0.8)
    assert [report[f"slots_{k}"] for k in ("matched", "expected", "predicted")] == [2, 3, 2]


def test_scores_cannot_be_changed():
    score = score_calls([ALARM], [ALARM])
    with pytest.raises(dataclasses.FrozenInstanceError):
        score.slots_matched = 5  # type: ignore[misc]
