import ctypes
import json
import os
import subprocess
import sys

import pytest

from macai.models import blas

linux = pytest.mark.skipif(sys.platform != "linux", reason="a Mac uses Accelerate and Metal")

MATMUL = """
import time
import mlx.core as mx
a = mx.random.normal((1024, 1024))
mx.eval(a)
seconds = []
for _ in range(3):
    start = time.perf_counter()
    mx.eval(a @ a)
    seconds.append(time.perf_counter() - start)
seconds = min(seconds)
"""
REPORT = """
import json
from macai.models.blas import load_fast_blas
info = load_fast_blas()
print(json.dumps([info.found, info.config, info.threads, info.reason, globals().get("seconds")]))
"""


def run(code: str, **environment: str) -> list:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""
    return json.loads(result.stdout)


@linux
def test_importing_the_models_makes_a_matmul_several_times_faster():
    found, config, threads, reason, fast = run("import macai.models" + MATMUL + REPORT)
    assert (found, reason) == (True, "")
    assert config.startswith("OpenBLAS")
    assert threads >= 1
    slow = run(MATMUL + REPORT)[-1]
    assert slow > 3 * fast


@linux
def test_it_comes_too_late_after_mlx():
    found, *_, reason, _ = run("import mlx.core" + REPORT)
    assert (found, reason) == (False, "mlx was imported before macai.models")


@linux
def test_a_second_call_has_the_first_answer_even_after_mlx():
    assert run("import macai.models, mlx.core" + REPORT)[0] is True


@linux
def test_the_threads_are_those_asked_for():
    assert run("import macai.models" + REPORT, OPENBLAS_NUM_THREADS="1")[2] == 1


@pytest.fixture
def fresh(monkeypatch):
    """load_fast_blas as in a process that has no MLX yet, not cached."""
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    return blas.load_fast_blas.__wrapped__


@linux
def test_a_missing_library_is_a_reason_not_an_error(fresh, monkeypatch):
    monkeypatch.setattr(blas.importlib.util, "find_spec", lambda name: None)
    info = fresh()
    assert (info.found, info.library, info.threads) == (False, None, 0)
    assert info.reason == ("no libopenblas.so.0 in cmeel.prefix/lib beside the package 'cmeel'")


@linux
def test_a_library_that_cannot_be_loaded_is_a_reason_not_an_error(fresh, monkeypatch):
    def refuse(path, mode=0):
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    info = fresh()
    assert info.found is False
    assert "cannot open shared object file" in info.reason


@linux
def test_a_fortran_runtime_without_its_name_is_a_reason_not_an_error(fresh, monkeypatch, tmp_path):
    (tmp_path / "libgfortran-0123.so.5.0.0").write_bytes(b"\x7fELF")
    load = ctypes.CDLL

    def only_plain(path, mode=0):
        if path == "libgfortran.so.5":
            raise OSError("not on a bare machine")
        return load(path, mode)

    def beside(package, folder, pattern):
        found = sorted(tmp_path.glob(pattern))
        return found[0] if found else real(package, folder, pattern)

    real = blas._beside
    monkeypatch.setattr(blas, "_beside", beside)
    monkeypatch.setattr(ctypes, "CDLL", only_plain)
    info = fresh()
    assert info.found is False
    assert "has its SONAME 0 times, not once" in info.reason


def test_a_mac_is_left_alone(fresh, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    info = fresh()
    assert (info.found, info.reason) == (False, "only Linux needs one")
