"""Data sets through the `datasets` package."""

import builtins
import json

import pytest

from macai.data.hub import hub_splits
from macai.data.rows import read_learnt, read_splits
from macai.errors import DataError
from macai.recipe import load_recipe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set as the hub has them: shards of Parquet, its splits named as there."""
    datasets = pytest.importorskip("datasets")
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))

    def write(name, rows):
        table = pyarrow.Table.from_pylist(rows, schema)
        parquet.write_table(table, made / "data" / f"{name}.parquet")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    kinds = {"role": "string", "content": "string", "train": "bool"}
    turn = pyarrow.struct([(name, pyarrow.type_for_alias(kind)) for name, kind in kinds.items()])
    columns = [("messages", pyarrow.list_(turn)), ("text", "string"), ("id", "int64")]
    schema = pyarrow.schema(columns)
    made = tmp_path / "set"
    (made / "data").mkdir(parents=True)
    marked = {"role": "assistant", "content": "Hello", "train": True}
    turns = [{"role": "user", "content": "Hi"}, marked]
    write("train-00000-of-00002", [{"messages": turns, "text": None, "id": 1}])
    write("train-00001-of-00002", [{"messages": None, "text": f"row {n}", "id": n} for n in (2, 3)])
    write("test-00000-of-00001", [{"messages": None, "text": "tested", "id": 4}])
    return write


@pytest.mark.oracle
def test_shards_are_one_split_and_members_without_a_value_are_left_out(folder, tmp_path):
    folder("validation-00000-of-00001", [{"messages": None, "text": "checked", "id": 5}])
    splits = read_splits(tmp_path_of(tmp_path))
    chat, *texts = splits.train
    assert [m.role for m in chat.messages] == ["user", "assistant"]
    assert [row.text for row in texts] == ["row 2", "row 3"]
    assert texts[1].source == f"hub:{tmp_path}/set#train:3"
    assert [row.text for row in splits.valid] == ["checked"]
    assert [row.text for row in splits.test] == ["tested"]
    assert len(read_learnt(tmp_path_of(tmp_path))) == 3


@pytest.mark.oracle
def test_without_rows_to_validate_on_some_are_held_back(folder, tmp_path):
    splits = read_splits(tmp_path_of(tmp_path))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (2, 1, 1)


@pytest.mark.oracle
def test_what_is_not_there_is_one_message(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"hub:/nowhere/at/all: ") as caught:
        read_splits(type(tmp_path)("hub:/nowhere/at/all"))
    assert "\n" not in caught.value.message
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    with pytest.raises(DataError, match="no split 'train'") as caught:
        hub_splits(tmp_path_of(tmp_path))
    assert caught.value.hint == "it has test"


def tmp_path_of(tmp_path):
    return type(tmp_path)(f"hub:{tmp_path}/set")


def test_without_the_package_one_is_told_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "datasets":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match="takes the datasets package") as caught:
        read_splits(type(tmp_path)("hub:owner/name"))
    assert caught.value.hint.startswith("pip install 'macai[datasets]'")


def test_a_folder_as_on_the_hub_is_told_from_one_of_ours(tmp_path):
    with pytest.raises(DataError, match=r"no train.jsonl and no valid.jsonl") as caught:
        read_splits(tmp_path)
    assert f"--data hub:{tmp_path}" in caught.value.hint


def test_a_name_in_a_recipe_stays_a_name(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'model = "m"\n[data]\npath = "hub:a/b"\nmix = [{path = "hub:c/d@1"}, {path = "e"}]\n'
    )
    data = load_recipe(file).data
    paths = [str(path) for path in (data.path, *(mix.path for mix in data.mix))]
    assert paths == ["hub:a/b", "hub:c/d@1", f"{tmp_path}/e"]
