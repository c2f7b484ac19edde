"""The wheel holds one import name and both catalogues, whole."""

import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("dist")
    [path] = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        yield archive


def files_below(folder: str) -> set[str]:
    """Return the files of a folder of the checkout, relative to it, but what Python caches."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(p.relative_to(ROOT / folder)) for p in paths if "__pycache__" not in p.parts}


def test_the_only_top_level_name_is_macai(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"macai"}
    assert len(tops) == 2


@pytest.mark.parametrize("kind", ["converters", "recipes"])
def test_a_catalogue_is_complete_in_the_wheel(wheel, kind):
    prefix = f"macai/_catalog/{kind}/"
    packed = {name.removeprefix(prefix) for name in wheel.namelist() if name.startswith(prefix)}
    assert packed == files_below(kind)
    assert len(packed) >= 1


def test_the_package_is_complete_and_typed(wheel):
    packed = {name.removeprefix("macai/") for name in wheel.namelist()}
    assert files_below("macai") <= packed
    assert "py.typed" in packed


def test_a_shipped_file_is_byte_for_byte_the_one_of_the_checkout(wheel):
    packed = wheel.read("macai/_catalog/recipes/lora.toml")
    assert packed == (ROOT / "recipes/lora.toml").read_bytes()


def test_the_command_is_installed(wheel):
    [name] = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert "macai = macai.__main__:main" in wheel.read(name).decode()


def test_the_version_is_the_one_of_the_package():
    import macai

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == macai.__version__
