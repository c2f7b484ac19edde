import errno
import os
from pathlib import Path

import mlx.core as mx
import pytest

from macai.errors import OutputError
from macai.files import (
    MARKS,
    atomic_directory,
    atomic_file,
    refuse_existing,
    refuse_replacing,
    write_json,
)
from macai.models.arrays import save_arrays


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(folder, text):
    folder.mkdir(parents=True)
    (folder / "part").write_text(text)
    return folder


def test_a_file_appears_whole_in_a_folder_made_for_it(tmp_path):
    target = tmp_path / "new" / "deep" / "a.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert (temporary.parent, temporary.suffix) == (target.parent, ".txt")
        temporary.write_text("whole")
    assert content(tmp_path) == {"new/deep/a.txt": "whole"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(143)])
def test_an_exception_midway_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_file(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert content(tmp_path) == {"a.txt": "old"}


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path, small_disk):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written: File too large"):  # noqa: SIM117
        with atomic_file(target) as temporary:
            temporary.write_bytes(bytes(1 << 17))
    assert content(tmp_path) == {"a.txt": "old"}


def test_no_space_left_is_said_in_words(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OutputError) as caught:
        write_json(target, {"new": 1})
    assert caught.value.message == f"{target}: cannot be written: No space left on device"
    assert content(tmp_path) == {"a.txt": "old"}


def test_arrays_for_a_full_disk_or_a_missing_folder_are_an_output_error(tmp_path, small_disk):
    target = tmp_path / "a.safetensors"
    target.write_text("old")
    with pytest.raises(OutputError, match=r"a\.safetensors: cannot be written: .*Unable") as caught:
        save_arrays(target, {"a": mx.zeros(1 << 16)}, {})
    assert caught.value.hint == "is the disk full?"
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        save_arrays(target / "deep" / "below", {"a": mx.zeros(1)}, {})
    assert content(tmp_path) == {"a.safetensors": "old"}


def test_another_error_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="broken"), atomic_file(tmp_path / "a"):
        raise RuntimeError("broken")


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "deep" / "a.txt"
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        write_json(target, 1)
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):  # noqa: SIM117
        with atomic_directory(target):
            raise AssertionError("the body must not run")


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_write_permission_is_an_output_error(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_json(locked / "a.json", 1)
    with pytest.raises(OutputError, match="Permission denied"), atomic_directory(locked / "a"):
        pass


def test_json_is_readable_text_and_holds_no_nan(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"é": [1]})
    assert file.read_text(encoding="utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, float("nan"))
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("empty_target_exists", [False, True])
def test_a_directory_appears_whole(tmp_path, empty_target_exists):
    target = tmp_path / "new" / "model"
    if empty_target_exists:
        target.mkdir(parents=True)
    with atomic_directory(target) as temporary:
        (temporary / "part").write_text("new")
        assert not (target / "part").exists()
    assert content(tmp_path) == {"new/model/part": "new"}
    assert names(target.parent) == ["model"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(143)])
def test_an_exception_midway_leaves_the_old_directory_and_nothing_else(tmp_path, error):
    target = fill(tmp_path / "model", "old")
    with pytest.raises(type(error)), atomic_directory(target, force=True, marks=()) as temporary:  # noqa: PT012
        (temporary / "part").write_text("half")
        raise error
    assert content(tmp_path) == {"model/part": "old"}
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_bytes(bytes(1 << 17)),
        lambda file: save_arrays(file, {"a": mx.zeros(1 << 16)}, {}),
        lambda file: write_json(file, "a" * (1 << 17)),
    ],
)
def test_a_disk_that_fills_up_leaves_no_directory(tmp_path, small_disk, write):
    target = tmp_path / "new"
    with pytest.raises(OutputError) as caught, atomic_directory(target) as temporary:
        write(temporary / "part.safetensors")
    assert caught.value.message.startswith(str(target))
    assert ".partial" not in caught.value.message
    assert names(tmp_path) == []


def test_an_existing_directory_is_refused_before_any_work(tmp_path):
    target = fill(tmp_path / "model", "old")
    with pytest.raises(OutputError) as caught, atomic_directory(target):
        raise AssertionError("the body must not run")
    assert caught.value.message == f"{target} exists already"
    assert caught.value.hint == "choose another --out, or replace it with --force"


def test_force_replaces_the_directory_as_a_whole(tmp_path):
    target = fill(tmp_path / "model", "old")
    with atomic_directory(target, force=True, marks={"part"}) as temporary:
        (temporary / "other").write_text("new")
        assert content(target) == {"part": "old"}
    assert content(tmp_path) == {"model/other": "new"}
    assert names(tmp_path) == ["model"]


def test_when_the_new_directory_cannot_take_its_place_the_old_one_does(tmp_path, monkeypatch):
    target, rename = fill(tmp_path / "model", "old"), Path.rename

    def fails(self, to):
        if self.suffix == ".partial":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OutputError, match="Input/output error"):  # noqa: SIM117
        with atomic_directory(target, force=True, marks=()) as temporary:
            (temporary / "other").write_text("new")
    assert content(tmp_path) == {"model/part": "old"}
    assert names(tmp_path) == ["model"]


def test_what_a_link_leads_to_is_replaced(tmp_path):
    target = fill(tmp_path / "disk" / "model", "old")
    link = tmp_path / "link"
    link.symlink_to(target)
    with atomic_directory(link, force=True, marks=()) as temporary:
        (temporary / "part").write_text("new")
    assert link.is_symlink()
    assert content(target) == {"part": "new"}
    assert names(target.parent) == ["model"]


def test_the_current_folder_can_be_the_output(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_directory(Path()) as temporary:
        (temporary / "part").write_text("new")
    assert content(tmp_path) == {"here/part": "new"}


def test_an_empty_folder_and_a_free_name_are_accepted(tmp_path):
    (tmp_path / "empty").mkdir()
    for force in (False, True):
        refuse_existing(tmp_path / "empty", force=force)
        refuse_existing(tmp_path / "free", force=force)


def test_a_file_is_refused_and_not_even_force_replaces_it(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError, match="is a file, not a folder"):
            refuse_existing(file, force=force)


def test_a_name_no_disk_can_hold_is_an_output_error():
    with pytest.raises(OutputError, match="File name too long"):
        refuse_existing(Path("a" * 300), force=False)


@pytest.mark.parametrize("mark", MARKS)
def test_force_replaces_what_macai_makes(tmp_path, mark):
    target = fill(tmp_path / "made", "old")
    (target / mark).write_text("{}")
    with atomic_directory(target, force=True) as temporary:
        (temporary / "other").write_text("new")
    assert content(tmp_path) == {"made/other": "new"}


def test_force_deletes_nobody_elses_files(tmp_path):
    target = fill(tmp_path / "thesis", "old")
    (target / "chapters").mkdir()
    for _ in range(2):
        with (
            pytest.raises(OutputError, match="neither a model nor a package") as caught,
            atomic_directory(target, force=True),
        ):
            raise AssertionError("the body must not run")
        assert caught.value.hint
        (target / "chapters" / "config.json").write_text("{}")  # not in the folder itself
    assert (target / "part").read_text() == "old"


def test_force_does_not_replace_the_folder_one_is_in(tmp_path, monkeypatch):
    target = fill(tmp_path / "model", "old")
    (target / "config.json").write_text("{}")
    (target / "deep").mkdir()
    for place, named in ((target, "."), (target / "deep", "..")):
        monkeypatch.chdir(place)
        with pytest.raises(OutputError, match="where you are"):
            refuse_replacing(Path(named), force=True)
    monkeypatch.chdir(tmp_path)
    refuse_replacing(target, force=True)
