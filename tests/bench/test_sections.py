"""Sections in another environment, which has another version of macai."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import macai
from macai.bench.memory import footprint_bytes
from macai.bench.probe import Speed
from macai.bench.report.compare import compare
from macai.bench.report.make import Around, make_report
from macai.bench.rounds import measure
from macai.bench.sections import Sections
from macai.errors import ModelError, UsageError
from tests.bench.elsewhere import CHECKOUT, other_environment
from tests.bench.turns import open_footprint, open_nothing, open_two


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of one with a copy of macai, and the folder of that copy."""
    return other_environment(tmp_path_factory.mktemp("other"))


@pytest.fixture
def changed(environment, monkeypatch):
    """Changes a file of the other macai until the test is over."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # two changes may be of one second and size
    python, copied = environment
    before = {}

    def change(name, edit):
        before[copied / name] = text = (copied / name).read_text()
        (copied / name).write_text(edit(text))
        return python

    yield change
    for path, text in before.items():
        path.write_text(text)


SLOW = """

import time

_quick = footprint_bytes


def footprint_bytes():
    time.sleep(0.02)
    return _quick()
"""


def test_another_environment_measures_its_own_macai(environment, tmp_path, monkeypatch):
    python, copied = environment
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.chdir(CHECKOUT)
    openers = {"x": partial(open_two, tmp_path / "log", "a", "b")}
    with Sections(openers, python=python) as other, Sections(openers) as own:
        assert [len(side.open("x")) for side in (other, own)] == [2, 2]
    assert (other.version.number, other.version.folder) == ("0.0.9", str(copied))
    assert own.version.number == macai.__version__
    assert own.version.folder == str(CHECKOUT / "macai")
    assert own.version.packages["numpy"] == np.__version__


def test_a_version_that_is_slower_is_found_to_be(changed, tmp_path):
    python = changed("bench/memory.py", lambda text: text + SLOW)
    openers = {"x": partial(open_footprint, tmp_path / "log")}
    with Sections(openers, python=python) as other, Sections(openers) as own:
        runs = measure(
            [other, own],
            ["x"],
            lambda: Speed(2e11, 1e10),
            rounds=5,
            budget_seconds=1e9,
            progress=lambda what, done, total: None,
            should_stop=lambda: False,
        )
    before, after = (
        make_report(
            run,
            Around(
                version=side.version.number,
                versions=side.version.packages,
                chip=None,
                backend="none",
                dtype="none",
                quick=True,
                seconds=1.0,
                commands=[],
                beside="0123456789abcdef",
            ),
        )
        for run, side in zip(runs, (other, own), strict=True)
    )
    assert before["runs"][0]["tool"] == "macai 0.0.9"
    [difference] = compare(before, after).differences
    assert (difference.verdict, difference.before > 0.02) == ("faster", True)


def test_an_older_version_that_cannot_be_told_what_to_measure_is_named(changed, tmp_path):
    python = changed("bench/worker.py", lambda text: text.replace("PROTOCOL = 1", "PROTOCOL = 0"))
    with (
        Sections({"x": open_nothing}, python=python) as sections,
        pytest.raises(ModelError, match=r"macai 0\.0\.9 of .* in another way") as caught,
    ):
        sections.open("x")
    assert "macai bench --compare A B" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "code"), [("", 0), ("raise ImportError('no such module')", 1)], ids=["old", "none"]
)
def test_a_version_without_such_processes_is_refused(changed, text, code):
    python = changed("bench/worker.py", lambda _: text)
    with (
        Sections({"x": open_nothing}, python=python) as sections,
        pytest.raises(ModelError, match=f"ended with code {code}") as caught,
    ):
        sections.open("x")
    assert "is macai in that environment" in caught.value.hint


def test_what_another_version_cannot_do_is_said_with_its_place(environment, changed):
    python = changed("bench/memory.py", lambda text: text.replace("footprint_bytes", "memory"))
    for opener, match in (
        (open_nothing, "cannot import name 'footprint_bytes'|no such model"),
        (footprint_bytes, "footprint_bytes"),
    ):
        with (
            Sections({"x": opener}, python=python) as sections,
            pytest.raises(ModelError, match=match) as caught,
        ):
            sections.open("x")
        assert str(python) in caught.value.message
        assert "\n" not in caught.value.message


def test_an_error_of_another_version_keeps_its_hint(environment):
    python, _ = environment
    with (
        Sections({"x": open_nothing}, python=python) as sections,
        pytest.raises(ModelError, match="there is no such model") as caught,
    ):
        sections.open("x")
    assert caught.value.hint == "give another"


@pytest.mark.parametrize("name", ["", "bin", "notes.txt"])
def test_what_is_no_python_is_refused_before_anything_is_measured(tmp_path, name):
    (tmp_path / "bin").mkdir()
    (tmp_path / "notes.txt").write_text("not a program")
    with pytest.raises(UsageError, match="no Python to run"):
        Sections({}, python=tmp_path / name)


def test_a_process_that_measures_leaves_signals_to_its_parent(tmp_path):
    with Sections({"x": partial(open_two, tmp_path / "log", "a", "b")}) as sections:
        sections.open("x")
        [(process, _)] = sections._processes.values()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
        assert sections.sample("x", 0)[0] == {"value": 1.0}
    assert process.returncode == 0


DIES = """
import os, signal, sys
from functools import partial
from pathlib import Path
from pathlib import Path
from macai.bench.sections import Sections
from tests.bench.turns import open_two
sections = Sections({"x": partial(open_two, Path(sys.argv[1]), "a", "b")})
sections.open("x")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_measures_is_gone_once_its_parent_is(tmp_path):
    # It holds the other end of what is read here: only its end is the end of that.
    run = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path / "log")],
        cwd=CHECKOUT,
        capture_output=True,
        timeout=60,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr


def test_a_file_that_the_system_cannot_run_is_no_python(tmp_path):
    file = tmp_path / "python"
    file.write_bytes(b"\0")
    file.chmod(0o755)
    with (
        Sections({"x": open_nothing}, python=file) as sections,
        pytest.raises(UsageError, match="no Python to run"),
    ):
        sections.open("x")


def script(folder, text):
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_program_that_never_says_who_it_is_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("macai.bench.sections.INTRODUCTION_SECONDS", 0.2)
    silent = script(tmp_path, f"echo $$ > {tmp_path}/pid\nexec sleep 300")
    with (
        Sections({"x": open_nothing}, python=silent) as side,
        pytest.raises(ModelError, match="did not become a process that measures"),
    ):
        side.open("x")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_second_ctrl_c_leaves_no_process_whatever_it_does(tmp_path):
    with Sections({"x": partial(open_two, tmp_path / "log", "a", "b")}) as side:
        side.open("x")
        side.kill()
        with pytest.raises(ModelError, match="ended with code -9"):
            side.sample("x", 0)


def test_a_python_by_its_name_alone_is_looked_for_as_a_shell_does(tmp_path, monkeypatch):
    script(tmp_path, "exit 3")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with (
        Sections({"x": open_nothing}, python=Path("python")) as side,
        pytest.raises(ModelError, match=f"{tmp_path}/python did not .* ended with code 3"),
    ):
        side.open("x")
