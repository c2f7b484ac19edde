"""Examples in a file, and what a data set larger than memory takes of it."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.data.batches import plan_epoch, shared_prefix
from macai.data.rows import read_splits
from macai.data.store import ExampleFile, Joined, example_files, sizes_of
from macai.data.tokens import Example, prepare
from macai.errors import OutputError


def example(length, *, good=True, source="rows.jsonl:1"):
    learn = np.arange(length) >= max(1, length // 2)
    return Example(np.arange(length, dtype=np.int32) * 7, learn, source, good)


def same(one, other):
    return (
        one.source == other.source
        and one.good == other.good
        and (one.ids.dtype, one.learn.dtype) == (other.ids.dtype, other.learn.dtype)
        and np.array_equal(one.ids, other.ids)
        and np.array_equal(one.learn, other.learn)
    )


@given(
    st.lists(
        st.builds(
            example,
            st.integers(2, 40),
            good=st.booleans(),
            source=st.text(st.characters(codec="utf-8")),
        ),
        min_size=1,
    )
)
def test_what_is_put_in_comes_out_in_any_order(tmp_path_factory, examples):
    file = ExampleFile(tmp_path_factory.mktemp("rows") / "0.bin")
    file.extend(examples)
    assert len(file) == len(examples)
    assert all(map(same, file, examples))
    assert all(map(same, reversed(file), reversed(examples)))
    assert same(file[-1], examples[-1])
    assert all(map(same, file[1::2], examples[1::2]))
    for own, other in zip(sizes_of(file), sizes_of(examples), strict=True):
        assert own.tolist() == other.tolist()
    with pytest.raises(IndexError):
        file[len(examples)]
    file.append(examples[0])  # after it was read
    assert same(file[len(examples)], examples[0])
    file.close()


def test_another_process_reads_the_same_file(tmp_path):
    file = ExampleFile(tmp_path / "0.bin")
    file.extend([example(5), example(9)])
    other = pickle.loads(pickle.dumps(file))
    assert all(map(same, other, file))
    assert len(pickle.dumps(file)) < 2000
    other.close()  # which is not the one to take it away
    assert same(file[1], example(9))
    file.close()


def test_several_files_are_one_sequence(tmp_path):
    with example_files(tmp_path, 3) as (first, second, third):
        first.extend([example(3), example(4)])
        third.append(example(5))
        joined = Joined([first, second, third])
        assert [len(e.ids) for e in joined] == [3, 4, 5]
        assert [len(joined[n].ids) for n in (-1, 0, 2)] == [5, 3, 5]
        assert [len(e.ids) for e in joined[1:]] == [4, 5]
        assert sizes_of(joined).tokens.tolist() == [3, 4, 5]


def test_the_files_are_gone_afterwards_and_so_is_a_folder_made_for_them(tmp_path):
    with example_files(tmp_path / "new" / "run", 2):
        assert len(list((tmp_path / "new" / "run" / "rows").iterdir())) == 2
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "0.bin").write_bytes(b"of a run that was killed")
    (tmp_path / "recipe.toml").touch()
    with example_files(tmp_path, 1) as (file,):
        assert len(file) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "recipe.toml"]


def test_a_full_disk_is_said(tmp_path, small_disk):
    file = ExampleFile(tmp_path / "0.bin")
    with pytest.raises(OutputError, match=r"0.bin: cannot be written"):
        file.extend([example(500)] * 100)
    file.close()
    assert not file.path.exists()


def peak(folder, tokenizer, count):
    """Return the most that Python and numpy held to read, tokenise and plan so many rows."""
    said = "Turn on the light in the kitchen, please, and close the window. " * 8
    with (folder / "rows.jsonl").open("w") as file:
        for n in range(count):
            file.write(json.dumps({"text": f"{n} {said[: 100 + n % 400]}"}) + "\n")
    tracemalloc.start()
    with example_files(folder, 2) as kept:
        splits = read_splits(folder / "rows.jsonl")
        limits = {"max_length": 1024, "truncation": "error"}
        train, valid = prepare([splits.train, splits.valid], tokenizer, kept=kept, **limits)
        lengths = sizes_of(train.examples).read
        steps = plan_epoch(lengths, tokens=2048, micro_tokens=2048, seed=0, epoch=0)
        rows = sorted(row for step in steps for plan in step for row in plan.rows)
        assert rows == list(range(len(train.examples)))
        del rows
        assert len(train.examples) + len(valid.examples) == count
        assert shared_prefix(train.examples) == 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_grows_by_a_few_numbers_a_row(tmp_path, tokenizer):
    few, many = (peak(tmp_path, tokenizer, count) for count in (300, 3000))
    a_row = (many - few) / 2700
    assert a_row < 250  # bytes; in lists it were some 3000
