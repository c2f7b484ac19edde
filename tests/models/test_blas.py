import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

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
    assert info.reason == "no library in the package 'scipy_openblas32'"


@linux
def test_a_library_that_cannot_be_loaded_is_a_reason_not_an_error(fresh, monkeypatch):
    def refuse(path, mode=0):
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    info = fresh()
    assert info.found is False
    assert "cannot open shared object file" in info.reason


@linux
def test_a_library_without_a_function_is_a_reason_not_an_error(fresh, monkeypatch):
    monkeypatch.setattr(blas, "FUNCTIONS", (*blas.FUNCTIONS, "sdoesnotexist_"))
    info = fresh()
    assert info.found is False
    assert "scipy_sdoesnotexist_" in info.reason


@linux
def test_functions_of_another_library_that_come_first_are_a_reason():
    code = """
import ctypes
from macai.models import blas  # which loads it
blas.FUNCTIONS = ("getpid",)
blas.PREFIX = ""
try:
    blas._lend(ctypes.CDLL(None))
    blas._address = lambda library, name: id(library)
    blas._lend(ctypes.CDLL(None))
except LookupError as e:
    found = str(e)
import json
print(json.dumps(found))
"""
    assert run(code) == "another library's getpid is found before OpenBLAS'"


@linux
def test_all_that_mlx_calls_of_blas_and_lapack_comes_from_it():
    import mlx

    [library] = (path for folder in mlx.__path__ for path in Path(folder).glob("lib/libmlx.so"))
    wanted = re.findall(rb"\0(cblas_[a-z]+|[sdcz][a-z]{4,5}_)(?=\0)", library.read_bytes())
    assert {name.decode() for name in wanted} == set(blas.FUNCTIONS)


@linux
def test_decompositions_come_from_it_and_are_right():
    code = """
import macai.models
import mlx.core as mx
a = mx.random.normal((40, 30))
q, r = mx.linalg.qr(a, stream=mx.cpu)
u, s, vt = mx.linalg.svd(a, stream=mx.cpu)
w, v = mx.linalg.eigh(a.T @ a, stream=mx.cpu)
off = [q @ r - a, (u[:, :30] * s) @ vt - a, (v * w) @ v.T - a.T @ a]
import json
print(json.dumps([mx.abs(x).max().item() for x in off]))
"""
    assert max(run(code)) < 1e-4


def test_a_mac_is_left_alone(fresh, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    info = fresh()
    assert (info.found, info.reason) == (False, "only Linux needs one")
