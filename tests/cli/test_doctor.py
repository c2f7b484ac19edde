import importlib.metadata
import json
import re
import shutil
import sys

import coremltools  # noqa: F401  # before doctor loads its libraries by themselves: they load once
import numpy as np
import pytest

import macai as package
from macai.cli import doctor
from macai.page import machine
from macai.page.machine import PACKAGES


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MACAI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def whats(report) -> list[str]:
    return [problem["what"] for problem in report["problems"]]


def test_the_report_names_versions_hardware_and_speed(macai, home):
    result = macai("doctor", "--json")
    assert (result.code, result.err, result.out.count("\n")) == (0, "", 1)
    report = json.loads(result.out)
    assert report["versions"]["macai"] == package.__version__
    assert report["versions"]["mlx"] == importlib.metadata.version("mlx")
    assert report["machine"]["memory_bytes"] > 2**30
    assert report["mlx"]["backend"] in ("metal", "cpu")
    assert report["mlx"]["matmul_gflops"] > 0
    assert report["cache"]["path"] == str(home)
    assert report["cache"]["models"] == []
    assert report["cache"]["free_bytes"] <= shutil.disk_usage("/").total
    assert set(report["coremltools"].values()) == {"ok"}
    assert not home.exists()


def test_the_text_has_the_same_and_what_does_not_work_here(macai, monkeypatch, home):
    (home / "models/some-model").mkdir(parents=True)
    (home / "models/some-model/macai_source.json").write_text("{}")
    result = macai("doctor")
    assert result.code == 0
    lines = result.out.splitlines()
    assert f"macai                {package.__version__}" in lines
    assert any(line.startswith("backend ") and "GFLOP/s" in line for line in lines)
    assert any(line.startswith("cache ") and line.endswith(", some-model") for line in lines)
    last = "everything works here"
    if sys.platform != "darwin":
        last = (
            "limited: a Core ML package does not run: "
            "only macOS compiles and runs one; it can still be built here"
        )
    assert last in lines


@pytest.fixture
def report():
    """What doctor found on a Mac where all is well."""
    return {
        "versions": dict.fromkeys(PACKAGES, "1.0"),
        "mlx": {"backend": "metal", "device": "gpu", "chip": "M9", "matmul_gflops": 9000.0},
        "blas": {"found": False, "reason": "only Linux needs one"},
        "coremltools": {"libmodelpackage": "ok"},
        "cache": {"writable": True, "path": "/cache"},
    }


@pytest.fixture
def mac(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")


@pytest.mark.usefixtures("mac")
def test_a_good_mac_has_no_problems(report):
    assert doctor._problems(report) == []


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("mlx", {"error": "no libmlx"}, ("mlx cannot be imported", "no libmlx", True)),
        (
            "coremltools",
            {},
            ("nothing can be exported to Core ML", "coremltools: not installed", False),
        ),
        (
            "coremltools",
            {"libmodelpackage": "not in the wheel for this Python"},
            (
                "nothing can be exported to Core ML",
                "libmodelpackage: not in the wheel for this Python",
                False,
            ),
        ),
        (
            "cache",
            {"writable": False, "path": "/cache"},
            (
                "models cannot be downloaded or converted",
                "/cache cannot be written; set MACAI_HOME to another folder",
                False,
            ),
        ),
    ],
)
def test_what_is_broken_is_named_with_its_reason(report, part, value, problem):
    assert doctor._problems({**report, part: value}) == [problem]


@pytest.mark.usefixtures("mac")
def test_a_missing_package_that_all_need_is_essential(report):
    versions = {**report["versions"], "mlx-lm": None, "coremltools": None}
    problems = doctor._problems({**report, "versions": versions})
    assert problems == [("mlx-lm is not installed", "install it: pip install mlx-lm", True)]


@pytest.mark.usefixtures("mac")
def test_a_slow_processor_has_the_reason_why_the_fast_blas_is_not_used(report):
    mlx = {"backend": "cpu", "device": "cpu", "matmul_gflops": 7.0}
    blas = {"found": False, "reason": "no libopenblas.so.0"}
    problems = doctor._problems({**report, "mlx": mlx, "blas": blas})
    assert ("float32 is slow even for a CPU", "no libopenblas.so.0", False) in problems
    fast = doctor._problems({**report, "mlx": {**mlx, "matmul_gflops": 200.0}, "blas": blas})
    assert [what for what, _, _ in fast] == ["training is slow"]


def test_a_library_that_is_no_library_is_told(tmp_path):
    assert doctor._try_extension("libx", tmp_path) == "not in the wheel for this Python"
    (tmp_path / "libx.so").write_bytes(b"text")
    assert "libx.so" in doctor._try_extension("libx", tmp_path)


def test_something_essential_missing_exits_with_1(macai, monkeypatch):
    monkeypatch.setattr(doctor, "_ESSENTIAL", ("mlx", "no-such-package"))
    monkeypatch.setattr(machine, "PACKAGES", (*PACKAGES, "no-such-package"))
    result = macai("doctor")
    assert result.code == 1
    assert "broken: no-such-package is not installed: install it: pip" in result.out


def test_a_python_without_pip_cannot_download(report, monkeypatch, mac):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    problems = doctor._problems(report)
    assert [what for what, _, _ in problems] == ["the catalogue's models cannot be downloaded"]


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """A package whose results Core ML has wrong, pow with base 2 five times, and a right one."""
    from tests.mil.lint_build import built, half, mb

    def body(x):
        for _ in range(5):
            x = mb.pow(x=np.float16(2), y=x)
        return x

    folder = tmp_path_factory.mktemp("doctor")
    wrong = built(body, half(4))(folder / "wrong", folder)
    right = built(lambda x: mb.mul(x=x, y=np.float16(2)), half(4))(folder / "right", folder)
    return wrong, right


@pytest.fixture
def wrong(packages, capsys):
    capsys.readouterr()  # what coremltools says as it converts
    return packages[0]


@pytest.fixture
def right(packages, capsys):
    capsys.readouterr()
    return packages[1]


def test_a_package_is_examined_and_an_error_in_it_exits_with_1(macai, wrong):
    result = macai("doctor", wrong)
    assert result.code == 1
    lines = result.out.splitlines()
    assert lines[0] == f"{wrong}: specification 9, main"
    start = lines.index("error pow-of-two: pow with a constant base of 2")
    assert re.match(r"  main, pow_\d+: 2\^x0", lines[start + 1])
    assert lines[start + 4] == "  and 2 more"
    assert lines[start + 5].startswith("  why: Core ML computes")
    assert lines[start + 6].startswith("  fix: Write exp(")
    assert lines[-1].startswith("5 errors, ")


def test_json_has_every_finding(macai, wrong):
    result = macai("doctor", wrong, "--json")
    assert (result.code, result.err, result.out.count("\n")) == (1, "", 1)
    report = json.loads(result.out)
    assert report["counts"]["error"] == 5
    errors = [f for f in report["findings"] if f["severity"] == "error"]
    assert {(f["rule"], f["function"]) for f in errors} == {("pow-of-two", "main")}
    assert len(errors) == 5


def test_notes_alone_exit_with_0(macai, right):
    result = macai("doctor", right)
    assert (result.code, result.err) == (0, "")
    assert "note missing-metadata" in result.out


def test_what_is_no_package_is_one_error(macai, tmp_path):
    result = macai("doctor", tmp_path)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"error: {tmp_path}: neither macai.json nor Manifest.json in it")
    assert "hint: give a .mlpackage folder" in result.err
    missing = macai("doctor", tmp_path / "None.mlpackage")
    assert missing.err.startswith(f"error: {tmp_path / 'None.mlpackage'}: is not there")
