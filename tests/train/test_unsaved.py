import pytest

from macai.train.unsaved import remove_unsaved, removing_unsaved

LEFT = {"recipe.toml", "adapter_config.json", "metrics.jsonl"}


def folder_of(path, names):
    path.mkdir()
    for name in names:
        (path / name).write_text("x")
    return path


@pytest.mark.parametrize(
    "names",
    [
        LEFT,
        {"recipe.toml", "adapter_config.json"},
        {"recipe.toml", "metrics.jsonl"},
        LEFT | {".checkpoint.0a1b2c3d.partial.safetensors"},
    ],
)
def test_what_a_run_left_that_saved_nothing_is_removed(tmp_path, names):
    out = folder_of(tmp_path / "out", names)
    remove_unsaved(out)
    assert not out.exists()


def test_encoded_pictures_are_removed_too(tmp_path):
    out = folder_of(tmp_path / "out", {"recipe.toml"})
    (out / "cache").mkdir()
    (out / "cache" / "0.safetensors").write_text("x")
    remove_unsaved(out)
    assert not out.exists()


@pytest.mark.parametrize(
    "names",
    [
        set(),
        {"recipe.toml"},
        {"adapter_config.json"},
        LEFT | {"checkpoint.safetensors"},
        LEFT | {"adapter_model.safetensors"},
        LEFT | {"notes.txt"},
        {"notes.txt"},
    ],
)
def test_anything_else_is_left_as_it_is(tmp_path, names):
    out = folder_of(tmp_path / "out", names)
    remove_unsaved(out)
    assert {path.name for path in out.iterdir()} == names


def test_a_folder_that_is_not_there_or_is_a_file_is_no_run(tmp_path):
    remove_unsaved(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    remove_unsaved(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_only_a_run_that_fails_is_removed(tmp_path):
    out = folder_of(tmp_path / "out", LEFT)
    with removing_unsaved(out):
        pass
    assert out.is_dir()
    with pytest.raises(KeyboardInterrupt), removing_unsaved(out):
        raise KeyboardInterrupt
    assert not out.exists()
