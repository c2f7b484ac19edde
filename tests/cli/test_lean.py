import gc
import importlib
import sys

import pytest

from macai.cli import lean
from macai.cli.lean import lean_imports


@pytest.fixture
def heavy(tmp_path, monkeypatch):
    """A library that is installed, and that macai has no use for."""
    (tmp_path / "heavy_for_test.py").write_text("there = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(lean, "_UNUSED", ("heavy_for_test",))
    yield "heavy_for_test"
    sys.modules.pop("heavy_for_test", None)


def test_an_unused_library_is_not_found_meanwhile_and_found_after(heavy):
    with lean_imports(), pytest.raises(ModuleNotFoundError):
        importlib.import_module(heavy)
    assert importlib.import_module(heavy).there


def test_what_is_loaded_already_stays(heavy):
    module = importlib.import_module(heavy)
    with lean_imports():
        assert importlib.import_module(heavy) is module
    assert sys.modules[heavy] is module


def test_collecting_goes_on_afterwards():
    with lean_imports():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_all_is_as_it_was_after_an_error(heavy):
    with pytest.raises(ImportError), lean_imports():
        importlib.import_module(heavy)
    assert gc.isenabled()
    assert heavy not in sys.modules
