import email.utils
import json
from pathlib import Path

import pytest

from benchmarks.quality_methods import Case, compare, interval
from benchmarks.training import macai_side
from benchmarks.training.docstrings import conversations, write_splits

EMAIL = Path(email.__file__).parent  # of the library, some hundred docstrings


def test_docstrings_are_real_rows_and_the_same_each_time(tmp_path):
    rows = conversations(EMAIL)
    assert len(rows) > 100
    assert rows == conversations(EMAIL)
    answers = {question["content"]: answer["content"] for question, answer in rows}
    assert len(set(answers.values())) == len(rows)
    documented = answers["What does `utils.unquote(str)` do?"]
    assert documented == email.utils.unquote.__doc__
    write_splits(tmp_path, rows=30, valid=5, test=4, library=EMAIL)
    parts = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "valid", "test")
    }
    assert [len(part) for part in parts.values()] == [30, 5, 4]
    assert [row["messages"] for part in parts.values() for row in part] == rows[:39]


def test_too_few_docstrings_are_said(tmp_path):
    with pytest.raises(SystemExit, match="too few docstrings for 5000 of valid"):
        write_splits(tmp_path, rows=10, valid=5000, library=EMAIL)


@pytest.mark.parametrize("feature", sorted(macai_side.FEATURES.keys() - {"kept memory"}))
def test_what_is_left_out_is_there(feature, monkeypatch):
    seen = []

    def replace(where, name, value):
        seen.append(name)
        assert getattr(where, name) is not value

    monkeypatch.setattr(macai_side, "replace", replace)
    macai_side.FEATURES[feature]()
    assert len(seen) == 1


def test_nothing_is_left_out_that_is_gone():
    with pytest.raises(AssertionError, match="has no fast_loss to replace any more"):
        macai_side.replace(macai_side, "fast_loss", None)


def result(valid, test):
    return {"valid_loss": valid, "test_loss": test}


def test_methods_are_compared_at_the_rate_that_validation_prefers_seed_by_seed():
    results = {
        Case("intents", "lora", 1.0, 0): result(1.0, 1.1),
        Case("intents", "lora", 1.0, 1): result(1.0, 1.3),
        Case("intents", "full", 1.0, 0): result(1.0, 0.1),  # better on test, which decides nothing
        Case("intents", "full", 1.0, 1): result(1.0, 0.1),
        Case("intents", "full", 2.0, 0): result(0.9, 1.0),
        Case("intents", "full", 2.0, 1): result(0.9, 1.2),
        Case("intents", "full", 4.0, 0): result(0.1, 0.2),  # its other seed is not done
    }
    lora, full = compare(results)
    assert (lora["factor"], lora["seeds"], full["factor"], full["seeds"]) == (1.0, 2, 2.0, 2)
    assert lora["test_loss"][0] == pytest.approx(1.2)
    assert full["less_lora"] == pytest.approx((-0.1, -0.1, -0.1))
    assert "less_lora" not in lora


def test_an_interval_is_students():
    mean, low, high = interval([1.0, 2.0, 3.0])  # 4.3027 * 1 / sqrt 3
    assert (mean, low, high) == pytest.approx((2.0, 2 - 2.48414, 2 + 2.48414), rel=1e-4)
    assert interval([1.5]) == (1.5, None, None)
