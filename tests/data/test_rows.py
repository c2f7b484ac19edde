import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.data.rows import Message, Row, read_rows, read_splits
from macai.errors import DataError

GOOD = b'{"text": "good"}'


def turns(*contents, **last):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]
    messages[-1] |= last
    return messages


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(rows):
    return [row.text for row in rows]


def problem(path):
    with pytest.raises(DataError) as caught:
        read_splits(path) if path.is_dir() else read_rows(path)
    assert caught.value.hint
    return caught.value.message


def test_the_three_forms_are_read_with_where_they_stand(tmp_path):
    chat = turns("Hi", "Hello", "Bye", "See you", train=True)
    chat[1]["train"] = False
    file = write(
        tmp_path / "rows.jsonl",
        {"messages": chat, "id": 7},
        {"prompt": "2 + 2 =", "completion": " 4"},
        {"text": "once upon a time"},
    )
    assert read_rows(file) == [
        Row(
            source=f"{file}:1",
            messages=(
                Message(role="user", content="Hi"),
                Message(role="assistant", content="Hello", train=False),
                Message(role="user", content="Bye"),
                Message(role="assistant", content="See you"),
            ),
        ),
        Row(source=f"{file}:2", prompt="2 + 2 =", completion=" 4"),
        Row(source=f"{file}:3", text="once upon a time"),
    ]


BAD = {
    b'{"text": "cut': "not valid JSON: Unterminated string starting at at column 10",
    b"[" * 100_000: "recursion",
    b'["text"]': "an array, not an object; one is wanted on each line",
    b"null": "null, not an object",
    b"12": "a number, not an object",
    b'{"text": "\xff"}': "not UTF-8 at byte 10",
    b"{}": "needs one of 'messages', 'prompt' or 'text', has nothing",
    b'{"txt": "a"}': "needs one of 'messages', 'prompt' or 'text', has 'txt'",
    b'{"text": "a", "prompt": "b"}': "has 'prompt' and 'text'",
    b'{"text": 1}': "'text' is not a string",
    b'{"text": " \\n"}': "'text' is empty",
    b'{"text": "half \\ud83d"}': "'text' has half a surrogate pair at character 6",
    b'{"prompt": "a"}': "'completion' is missing",
    b'{"prompt": ["a"], "completion": "b"}': "'prompt' is not a string",
    b'{"prompt": "a", "completion": ""}': "'completion' is empty",
    b'{"messages": "hi"}': "'messages' is not a list with turns in it",
    b'{"messages": []}': "'messages' is not a list with turns in it",
    b'{"messages": ["hi"]}': "turn 1 is not an object",
}
BAD_TURNS = {
    "turn 1: role 'bot' is none of system, user, assistant, tool": [{"role": "bot"}],
    "turn 1: role None is none of": [{"content": "a"}],
    "turn 1: role ['user'] is none of": [{"role": ["user"], "content": "a"}],
    "turn 2: 'content' is not a string": turns("a", None),
    "turn 1: 'content' is not a string": turns([{"type": "text", "text": "a"}], "b"),
    "turn 2: the assistant says nothing": turns("a", " \n"),
    "turn 2: 'train' is not true or false": turns("a", "b", train=1),
    "turn 2 has half a surrogate pair at character 1": turns("a", "\udc00"),
    "no assistant turn to learn from": turns("a"),
    "no assistant turn to learn from ": turns("a", "b", train=False),
}
BAD |= {json.dumps({"messages": m}).encode(): why.strip() for why, m in BAD_TURNS.items()}


@pytest.mark.parametrize(("line", "why"), BAD.items(), ids=list(BAD.values()))
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, why):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    first, second = problem(file).splitlines()
    assert first == "1 bad row:"
    assert second.startswith(f"  {file}:2: ")
    assert why in second


def test_every_bad_row_is_listed(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(line for bad in BAD for line in (bad, GOOD)))
    first, *rest = problem(file).splitlines()
    assert first == f"{len(BAD)} bad rows:"
    assert [line.split(": ")[0] for line in rest] == [
        f"  {file}:{2 * i + 1}" for i in range(len(BAD))
    ]


def test_of_many_bad_rows_the_first_are_listed_and_the_others_counted(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"{}\n" * 3000)
    lines = problem(file).splitlines()
    assert len(lines) == 52
    assert lines[0] == "3000 bad rows:"
    assert lines[50].startswith(f"  {file}:50: ")
    assert lines[51] == "  and 2950 more"


def test_the_bad_rows_of_all_files_are_listed_at_once(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.jsonl").write_bytes(GOOD + b"\n{}\n")
    message = problem(tmp_path)
    for name in ("train", "valid", "test"):
        assert f"{tmp_path / name}.jsonl:2: needs one of" in message


def test_blank_lines_byte_order_marks_and_windows_line_ends_are_no_problem(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n\n{"text": "b"}\r\n{"text": "c\\r\\n"}')
    assert texts(read_rows(file)) == ["a", "b", "c\r\n"]
    assert [row.source for row in read_rows(file)] == [f"{file}:{n}" for n in (1, 5, 6)]


def test_line_separators_inside_a_string_end_no_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert texts(read_rows(file)) == ["a\u2028b\x85c"]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    assert problem(file) == f"{file}: no rows in it"


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        read_splits(tmp_path / "nowhere")
    assert problem(tmp_path) == f"{tmp_path}: no train.jsonl and no valid.jsonl in it"
    write(tmp_path / "train.jsonl", {"text": "a"})
    write(tmp_path / "validation.jsonl", {"text": "b"})  # a name other tools use
    assert problem(tmp_path) == f"{tmp_path}: no valid.jsonl in it"


def test_a_folder_is_read_by_its_names(tmp_path):
    for name in ("train", "valid"):
        write(tmp_path / f"{name}.jsonl", {"text": name})
    splits = read_splits(tmp_path)
    assert (texts(splits.train), texts(splits.valid), splits.test) == (["train"], ["valid"], [])
    write(tmp_path / "test.jsonl", {"text": "test"})
    assert texts(read_splits(tmp_path).test) == ["test"]


def test_one_row_cannot_be_split(tmp_path):
    file = write(tmp_path / "rows.jsonl", {"text": "a"})
    with pytest.raises(DataError, match="one row is too few"):
        read_splits(file)


@given(st.sets(st.text(min_size=1).filter(lambda t: t.strip()), min_size=2, max_size=60))
def test_one_file_is_split_into_disjoint_parts_that_are_all_of_it(tmp_path_factory, said):
    said = sorted(t for t in said)
    file = write(tmp_path_factory.mktemp("split") / "rows.jsonl", *({"text": t} for t in said))
    splits = read_splits(file)
    train, valid = texts(splits.train), texts(splits.valid)
    again = read_splits(file)
    assert (train, valid) == (texts(again.train), texts(again.valid))
    assert len(valid) == max(1, round(len(said) / 10))
    assert sorted(train + valid) == said  # disjoint, since no text is there twice
    assert train == sorted(train)  # in the order of the file


def test_rows_are_read_anew_each_time_and_a_file_that_changed_meanwhile_is_refused(tmp_path):
    file = write(tmp_path / "rows.jsonl", *({"text": str(n)} for n in range(30)))
    train = read_splits(file).train
    assert list(train) == list(train)
    assert len(train) == len(list(train)) == 27
    assert next(iter(train)) in train
    assert Row(source="elsewhere", text="0") not in train
    write(file, *({"text": str(n)} for n in range(20)))
    with pytest.raises(DataError, match=r"rows.jsonl: changed while it was read"):
        list(train)


def test_the_order_of_the_file_does_not_change_the_split(tmp_path):
    rows = [{"prompt": str(i), "completion": "x"} for i in range(50)]
    a = read_splits(write(tmp_path / "a.jsonl", *rows))
    b = read_splits(write(tmp_path / "b.jsonl", *rows[::-1]))
    assert {row.prompt for row in a.valid} == {row.prompt for row in b.valid}


def test_adding_rows_moves_few_others_between_the_parts(tmp_path):
    rows = [{"messages": turns(f"question {i}", "answer")} for i in range(1100)]

    def valid(count):
        splits = read_splits(write(tmp_path / "rows.jsonl", *rows[:count]))
        return {row.messages[0].content for row in splits.valid}

    before, after = valid(1000), valid(1100)
    old = {f"question {i}" for i in range(1000)}
    moved = before ^ (after & old)
    # A split by position or by a shuffle of all rows would move some 180 of them.
    assert len(moved) <= 20
