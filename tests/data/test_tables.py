"""Rows in tables: CSV and Parquet."""

import builtins

import pytest

from macai.data.rows import Message, read_rows, read_splits
from macai.errors import DataError


def test_a_csv_has_a_row_of_each_form_and_its_line(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text('prompt,completion,text\n"2 +\n2 =",4,\n,,"once, upon"\n', encoding="utf-8-sig")
    first, second = read_rows(file)
    assert (first.prompt, first.completion, first.source) == ("2 +\n2 =", "4", f"{file}:3")
    assert (second.text, second.source) == ("once, upon", f"{file}:4")


def test_bad_rows_of_a_csv_are_listed_with_their_lines(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion\na,b\nc,\n,d\n")
    with pytest.raises(DataError) as caught:
        read_rows(file)
    assert caught.value.message.splitlines() == [
        "2 bad rows:",
        f"  {file}:3: 'completion' is missing",
        f"  {file}:4: needs one of 'messages', 'prompt' or 'text', has 'completion'",
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"text\na,b\n", "more cells than columns"),
        (b'text\n"a\n', "unexpected end of data"),
        (b"text\n\xff\n", "can't decode"),
    ],
)
def test_what_is_no_csv_is_refused_with_its_line(tmp_path, content, why):
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"rows.csv:\d: not CSV in UTF-8: .*{why}"):
        read_rows(file)


def test_the_splits_of_a_folder_may_be_of_different_kinds_but_each_is_one_file(tmp_path):
    (tmp_path / "train.csv").write_text("text\na\n")
    (tmp_path / "valid.jsonl").write_text('{"text": "b"}\n')
    splits = read_splits(tmp_path)
    assert [row.text for row in (*splits.train, *splits.valid)] == ["a", "b"]
    (tmp_path / "train.jsonl").write_text('{"text": "c"}\n')
    with pytest.raises(DataError, match=r"train.jsonl and train.csv") as caught:
        read_splits(tmp_path)
    assert caught.value.hint == "leave one of them"


def test_parquet_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "pyarrow":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="takes the pyarrow package") as caught:
        read_rows(file)
    assert caught.value.hint.startswith("pip install pyarrow")


@pytest.mark.oracle
def test_parquet_is_read_row_by_row(tmp_path):
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    file = tmp_path / "rows.parquet"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"messages": turns, "text": None}, {"messages": None, "text": "once"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    chat, text = read_rows(file)
    assert chat.messages == tuple(Message(**turn) for turn in turns)
    assert (text.text, text.source) == ("once", f"{file}:2")
    file.write_bytes(b"PAR1 and nothing that follows from it")
    with pytest.raises(DataError, match=r"rows.parquet: not Parquet"):
        read_rows(file)
