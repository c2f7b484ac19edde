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


IMPORT_ALL = """
import builtins, graphlib, importlib, sys

def noted(name, globals=None, locals=None, fromlist=(), level=0):
    module = real(name, globals, locals, fromlist, level)
    needs = edges.setdefault((globals or {}).get("__name__", ""), set())
    parts = {f"{name}.{part}" for part in fromlist or ()}
    needs |= (modules := parts & sys.modules.keys())
    if modules != parts or not parts:
        needs.add(name)
    return module

real, edges = builtins.__import__, {}
builtins.__import__ = noted
for name in sys.argv[1:]:
    importlib.import_module(name)
own = {n: {m for m in needs if m in sys.argv} for n, needs in edges.items() if n in sys.argv}
assert len(own) > 300, len(own)
graphlib.TopologicalSorter(own).prepare()
"""


def test_any_module_can_be_the_first_to_be_imported():
    """A cycle breaks some first import or other; what functions import when called is no matter."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "macai").rglob("*.py"))
        if path.name != "__main__.py" and "_catalog" not in path.parts
    ]
    assert "macai.recipe" in names
    command = [sys.executable, "-c", IMPORT_ALL, *names]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
