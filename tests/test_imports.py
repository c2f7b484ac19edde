"""What may import what, and what an import may cost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"coremltools", "mlx.core", "mlx_lm", "numpy", "rich", "transformers", "huggingface_hub"}


def test_a_line_imports_only_from_lines_below_it():
    code = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def modules_after(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["recipes", "list"], ["doctor", "--help"]])
def test_a_light_command_imports_nothing_heavy(arguments):
    modules = modules_after(
        f"""
import sys
from macai.cli.app import main
sys.argv = ["macai", *{arguments}]
try:
    main()
except SystemExit as e:
    assert e.code == 0
"""
    )
    assert "macai.cli.app" in modules
    assert modules & HEAVY == set()


def test_the_package_itself_imports_only_what_loads_the_blas_and_sets_up_malloc():
    added = modules_after("import macai") - modules_after("")
    assert {m for m in added if m.startswith("macai")} == {
        "macai",
        "macai.models",
        "macai.models.blas",
        "macai.models.heap",
    }
    assert added & HEAVY == set()


def test_any_module_of_macai_has_the_fast_blas_loaded_before_mlx():
    code = "import macai.train.loop; from macai.models.blas import load_fast_blas as f; f()"
    probe = f"{code}; print(f().found, f().reason)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert sys.platform != "linux" or out.stdout.startswith("True"), out.stdout


def test_every_module_can_be_imported_by_itself():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "macai").rglob("*.py"))
        if path.name != "__main__.py" and "_catalog" not in path.parts
    ]
    assert "macai.recipe" in names
    # One process, emptied of macai between two: a cycle shows only in a first import.
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module({name!r})\n"
        "for m in [m for m in sys.modules if m.partition('.')[0] == 'macai']: del sys.modules[m]\n"
        for name in names
    )
    modules_after(code)
