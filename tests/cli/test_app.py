import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import macai as package
from macai.cli.app import app
from macai.errors import RecipeError

SLOW = """
import time
from macai.models.converter import Converter

def convert(source, out, dtype, progress):
    (out / "half").write_text("half")
    print("begun", flush=True)
    time.sleep(60)

CONVERTER = Converter(name="slow", summary="", matches=lambda path: False, convert=convert)
"""


def python_macai(*arguments: str, **options) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "macai", *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def commands():
    from typer.main import get_command

    def walk(command, path):
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*path, name))

    return list(walk(get_command(app), ()))


def test_the_version_is_printed(macai):
    assert macai("--version").out == f"macai {package.__version__}\n"


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_help_ends_with_an_example_of_that_command(macai, path):
    result = macai(*path, "--help")
    assert (result.code, result.err) == (0, "")
    last = result.out.rstrip().rpartition("\n\n")[2]
    assert last.split()[: 2 + len(path)] == ["Example:", "macai", *path]


@pytest.mark.parametrize("path", [(), ("recipes",)], ids=" ".join)
def test_without_a_command_the_help_is_shown(macai, path):
    result = macai(*path)
    assert "Commands:" in result.out + result.err
    assert result.code == 2


def test_an_error_is_one_line_and_a_hint_on_stderr(macai):
    result = macai("recipes", "show", "lora", "--set", "adapter.rnak=3")
    assert (result.code, result.out) == (1, "")
    assert result.err == ("error: --set adapter: unknown key 'rnak'\nhint: did you mean 'rank'?\n")


def test_an_error_without_a_hint_is_one_line(macai):
    result = macai("convert", "gone.gguf", "--out", "never")
    assert result.err == "error: gone.gguf: no such file or folder\n"


def test_a_real_exception_surfaces_where_tests_call_the_app():
    with pytest.raises(RecipeError):
        CliRunner().invoke(app, ["recipes", "show", "gone"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipies"], "No such command 'recipies'. Did you mean 'recipes'?"),
        (["convert", "a.gguf"], "Missing option '--out'"),
        (["convert", "a.gguf", "--out", "b", "--dtype", "int3"], "'int3' is not one of"),
    ],
)
def test_wrong_usage_exits_with_2(macai, arguments, message):
    result = macai(*arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_defect_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["macai", "convert", str(tmp_path), "--out", "x", "--from"])
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    sys.argv.append(str(broken))
    from macai.cli.app import main

    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_ends_a_run_cleanly(tmp_path, number, code, said):
    (tmp_path / "slow.py").write_text(SLOW)
    run = python_macai(
        "convert",
        "slow.py",
        "--from",
        "slow.py",
        "--out",
        "out",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 2
        run.send_signal(number)
        _, err = run.communicate(timeout=10)
    assert (run.returncode, err) == (code, said)
    assert [path.name for path in tmp_path.iterdir()] == ["slow.py"]


class InterruptedImport:
    """Ctrl-C while the command line is being imported."""

    def find_spec(self, name, path, target=None):
        if name == "macai.cli.app":
            raise KeyboardInterrupt


def test_an_interrupt_before_a_command_begins_has_no_traceback(monkeypatch, capsys):
    from macai.__main__ import main

    monkeypatch.delitem(sys.modules, "macai.cli.app")
    monkeypatch.setattr(sys, "meta_path", [InterruptedImport(), *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code, *capsys.readouterr()) == (130, "", "interrupted\n")


def test_a_reader_that_leaves_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    with python_macai("recipes", "show", "lora", stdout=writing) as run:
        os.close(writing)
        assert run.communicate(timeout=10)[1] == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_one_error_with_a_hint():
    with Path("/dev/full").open("w") as full, python_macai("recipes", "list", stdout=full) as run:
        _, err = run.communicate(timeout=10)
    assert run.returncode == 1
    assert err.splitlines() == [
        "error: the output: No space left on device",
        "hint: free some space on that disk",
    ]
