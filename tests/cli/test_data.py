import json

import pytest
from rich.console import Console


@pytest.fixture
def rows(tmp_path):
    def rows(*train, valid=("v",)):
        for name, texts in (("train", train), ("valid", valid)):
            lines = (json.dumps({"prompt": f"q {t}", "completion": t}) + "\n" for t in texts)
            (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        return tmp_path

    return rows


def test_it_shows_what_is_learnt_and_counts(macai, rows, tiny_dir):
    result = macai("data", "check", rows("yes", "no"), "--model", tiny_dir)
    assert result.code == 0, result.err
    assert "train.jsonl:1: " in result.out
    assert "[<|im_end|>]" in result.out
    assert "[<|im_start|>]" not in result.out
    assert "train  2 rows, " in result.out
    assert result.out.endswith("nothing is wrong with it\n")
    assert "train.jsonl:2" not in result.out
    both = macai("data", "check", rows("yes", "no"), "--model", tiny_dir, "--show", 2)
    assert "train.jsonl:2" in both.out


def test_what_a_run_would_refuse_is_named_and_the_exit_code_is_1(macai, rows, tiny_dir):
    data = rows("yes", "no", "no", "word " * 40, valid=("no",))
    options = ("--model", tiny_dir, "--show", 0, "--set", "data.max_length=50")
    result = macai("data", "check", data, *options)
    assert result.code == 1
    for line in (
        "error: rows over data.max_length: 1",
        "error: rows to check with that are training rows too: 1",
        f"  {data}/valid.jsonl:1: as {data}/train.jsonl:2",
        "warning: training rows that are there already: 1",
    ):
        assert line in result.out.splitlines(), line


def test_json_is_one_line_with_every_row(macai, rows, tiny_dir):
    data = rows(*["same"] * 9)
    result = macai("data", "check", data, "--model", tiny_dir, "--json")
    assert (result.code, result.out.count("\n")) == (0, 1)
    (problem,) = json.loads(result.out)["problems"]
    assert (problem["name"], problem["severity"], len(problem["rows"])) == (
        "duplicate",
        "warning",
        8,
    )
    shown = macai("data", "check", data, "--model", tiny_dir, "--show", 0).out
    assert "  and 3 more" in shown.splitlines()


def test_bad_rows_are_said_before_a_model_is_looked_for(macai, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\nno\n")
    result = macai("data", "check", file, "--model", "nowhere")
    assert result.code == 1
    assert "2 bad rows" in result.err


def test_in_a_terminal_learnt_tokens_are_coloured(macai, rows, tiny_dir, monkeypatch):
    real = Console.__init__

    def terminal(self, **options):
        real(self, **options | {"force_terminal": True, "color_system": "standard"})

    data = rows("yes")
    monkeypatch.setattr(Console, "__init__", terminal)
    result = macai("data", "check", data, "--model", tiny_dir)
    assert "\x1b[30;42m" in result.out or "\x1b[30;102m" in result.out
    assert "[<|im_end|>]" not in result.out
