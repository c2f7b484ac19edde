"""Scores replies that must be one JSON object: an intent and its slots.

Nothing is rescued: a reply that an app could not parse as it stands counts as wrong.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from macai.errors import DataError

NORMAL_QUANTILE_95 = 1.959963984540054
"""Of the standard normal distribution, at 0.975."""


def wilson(hits: int, total: int, z: float = NORMAL_QUANTILE_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, 95 % unless `z` says otherwise.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
    the American Statistical Association 22 (1927), 209-212: the values of p that solve
    |hits / total - p| = z * sqrt(p * (1 - p) / total).
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} of {total} is not a proportion")
    p, share = hits / total, z * z / total
    middle = (p + share / 2) / (1 + share)
    half = z * math.sqrt(p * (1 - p) / total + share / (4 * total)) / (1 + share)
    # At the ends the bound is exact, and rounding would miss it.
    low = 0.0 if hits == 0 else middle - half
    high = 1.0 if hits == total else middle + half
    return low, high


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of how many rows, with its 95 % Wilson interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.total)

    def to_json(self) -> dict[str, float | int]:
        low, high = self.interval
        return {
            "value": self.value,
            "low": low,
            "high": high,
            "hits": self.hits,
            "total": self.total,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCallScore:
    """What `score_calls` found.

    Attributes:
        valid_json: Replies that are one JSON object, over all rows.
        intent_accuracy: Replies whose intent is the expected one, over all rows.
        exact_match: Replies equal to the expected object as a whole, over all rows.
        slots_matched: (key, value) pairs other than the intent in both objects, summed over rows.
        slots_expected: Such pairs in the expected objects.
        slots_predicted: Such pairs in the replies; an invalid reply has none.
    """

    valid_json: Rate
    intent_accuracy: Rate
    exact_match: Rate
    slots_matched: int
    slots_expected: int
    slots_predicted: int

    @property
    def rows(self) -> int:
        return self.exact_match.total

    @property
    def slot_f1(self) -> float:
        """Micro-averaged F1 over pairs; 1.0 where none was expected and none was made up.

        It has no Wilson interval: it is no proportion of independent trials.
        """
        pairs = self.slots_expected + self.slots_predicted
        return 2 * self.slots_matched / pairs if pairs else 1.0

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "exact_match": self.exact_match.to_json(),
            "intent_accuracy": self.intent_accuracy.to_json(),
            "valid_json": self.valid_json.to_json(),
            "slot_f1": self.slot_f1,
            "slots_matched": self.slots_matched,
            "slots_expected": self.slots_expected,
            "slots_predicted": self.slots_predicted,
        }


def parse_call(text: str) -> dict[str, str] | None:
    """Return a JSON object's members, each value in one canonical spelling; None if it is none.

    The spelling keeps types apart, as an app's decoder does: 1, 1.0, true and "1" are four values.
    And as for a decoder, a slot that is null is one that is absent.
    Members of inner objects are sorted, so their order never counts. A repeated key, NaN and
    numbers beyond a double make the text invalid, for parsers do not agree on what they mean.
    """
    try:
        call = json.loads(
            text.strip(),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if not isinstance(call, dict):
            return None
        said = {key: value for key, value in call.items() if value is not None}
        return {key: json.dumps(value, sort_keys=True) for key, value in said.items()}
    except (ValueError, RecursionError):
        # ValueError is also what Python raises for an integer of thousands of digits.
        return None


def score_calls(expected: Sequence[str], predictions: Sequence[str]) -> JsonCallScore:
    """Compare replies with the expected assistant texts, row by row.

    Raises:
        DataError: If an expected text is not a JSON object with a string `intent`; names all rows.
        ValueError: If the two differ in length, or there are no rows.
    """
    if len(expected) != len(predictions) or not expected:
        raise ValueError(f"{len(expected)} expected texts, {len(predictions)} predictions")
    wanted = _parse_expected(expected)
    replies = [parse_call(text) for text in predictions]
    pairs = list(zip(wanted, replies, strict=True))
    rows = len(pairs)
    return JsonCallScore(
        valid_json=Rate(sum(reply is not None for reply in replies), rows),
        intent_accuracy=Rate(
            sum(want["intent"] == (reply or {}).get("intent") for want, reply in pairs), rows
        ),
        exact_match=Rate(sum(want == reply for want, reply in pairs), rows),
        slots_matched=sum(len(_slots(want) & _slots(reply or {})) for want, reply in pairs),
        slots_expected=sum(len(_slots(want)) for want in wanted),
        slots_predicted=sum(len(_slots(reply or {})) for reply in replies),
    )


def _parse_expected(texts: Sequence[str]) -> list[dict[str, str]]:
    calls = [parse_call(text) or {} for text in texts]
    # Values are spelled as JSON: a string, and nothing else, begins with a quotation mark.
    bad = [row for row, call in enumerate(calls, 1) if not call.get("intent", "").startswith('"')]
    if bad:
        raise DataError(
            f"rows {', '.join(map(str, bad))}: the expected reply is no JSON object with an intent",
            hint='every assistant message must look like {"intent":"light.on","room":"kitchen"}',
        )
    return calls


def _slots(call: dict[str, str]) -> set[tuple[str, str]]:
    return {(key, value) for key, value in call.items() if key != "intent"}


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is beyond a double")
    return number
