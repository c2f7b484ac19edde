import json
from pathlib import Path

import pytest

MINE = """
from macai.errors import FormatError
from macai.models.converter import Converter

def convert(source, out, dtype, progress):
    content = source.read_bytes()
    if content == b"bad":
        raise FormatError(f"{source}: is bad")
    progress("converting", 1, 1)
    (out / "config.json").write_text("{}")
    (out / "model.safetensors").write_bytes(content + dtype.encode())

CONVERTER = Converter(name="mine", summary="", matches=lambda path: False, convert=convert)
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("a.bin").write_bytes(b"weights")
    return "a.bin"


def test_a_users_converter_writes_the_folder(macai, source):
    result = macai("convert", source, "--from", "mine.py", "--out", "out", "--dtype", "float16")
    assert result.code == 0
    assert result.out == "out  0.0 MB, 2 files (mine)\n"
    assert result.err.startswith("converting")
    assert Path("out/model.safetensors").read_bytes() == b"weightsfloat16"


def test_the_result_as_json_is_one_line(macai, source):
    result = macai("convert", source, "--from", "mine.py", "--out", "out", "--json")
    assert json.loads(result.out) == {
        "out": "out",
        "converter": "mine",
        "files_bytes": {"config.json": 2, "model.safetensors": 11},
    }


def test_a_file_nobody_knows_asks_for_a_converter(macai, source):
    result = macai("convert", source, "--out", "out")
    assert result.code == 1
    assert "error: a.bin: no converter knows this kind of file\nhint: choose one" in result.err
    assert not Path("out").exists()


def test_an_existing_folder_is_replaced_only_by_force(macai, source):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    Path("out/config.json").write_text("{}")
    result = macai("convert", source, "--from", "mine.py", "--out", "out")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: out exists already\n")
    assert Path("out/mine.txt").exists()
    assert macai("convert", source, "--from", "mine.py", "--out", "out", "--force").code == 0
    assert not Path("out/mine.txt").exists()


def test_a_file_that_cannot_be_converted_leaves_nothing(macai, source):
    Path(source).write_bytes(b"bad")
    result = macai("convert", source, "--from", "mine.py", "--out", "out")
    assert (result.code, result.err) == (1, "error: a.bin: is bad\n")
    assert sorted(path.name for path in Path().iterdir()) == ["a.bin", "mine.py"]


def test_an_unknown_converter_is_named(macai, source):
    result = macai("convert", source, "--from", "ggfu", "--out", "out")
    assert result.err.splitlines() == [
        "error: no converter is called 'ggfu', and no .py file is there",
        "hint: did you mean 'gguf'?",
    ]


def test_a_name_of_the_catalogue_needs_no_converting_and_is_told_so(macai, source):
    result = macai("convert", "smollm2-135m", "--out", "out")
    assert result.code == 1
    assert "hint: a model of the catalogue needs no converting: macai generate" in result.err
    assert "hint" not in macai("convert", "absent", "--out", "out").err
    assert not Path("out").exists()
