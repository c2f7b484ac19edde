"""`macai doctor`: what this machine has, what it is fast at, and what will not work on it.

With a package: what is wrong with that.
"""

import importlib.util
import json
import logging
import os
import platform
import shutil
import sys
import time
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.page.machine import machine, versions

if TYPE_CHECKING:
    from macai.mil.lint import Report
    from macai.mil.lint.report import Applied

_ESSENTIAL = ("mlx", "mlx-lm", "tokenizers", "numpy")
_MATMUL_SIZE = {"cpu": 1024, "gpu": 4096}
_PLACES = 3
"""How many places of one rule are printed: a model has the same in every layer."""
_SLOW_GFLOPS = 20  # the reference BLAS reaches 7, an optimised one 40 and more on one old core


def doctor(
    package: Annotated[
        Path | None,
        typer.Argument(
            help="A .mlpackage, or a bundle or adapter of macai export, to examine instead.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Show versions, hardware, speed and cache, and say what will not work here and why.

    With PACKAGE: look in a saved Core ML package, whoever made it, for every trap that is known;
    nothing is run. docs/lint.md explains each. Of a bundle of Stable Diffusion: what Apple's
    package, Mochi Diffusion, Guernika and swift-coreml-diffusers will stumble over. Of an adapter's
    file: what it is, if it is whole.
    The exit code is 1 if there are errors; without PACKAGE, if something is broken that every
    command needs.

    Example: macai doctor MyModel
    """
    if package is not None:
        if (package / "macai.json").is_file():
            from macai.coreml.sd.manifest import is_sd_bundle

            if is_sd_bundle(package):
                from macai.cli.doctor_sd import examine_sd

                examine_sd(package, as_json=as_json)
                return
        examine_other = _examine_adapter if package.is_file() else _examine_package
        examine_other(package, as_json=as_json)
        return
    report = examine()
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        _print_report(report)
    if any(problem["essential"] for problem in report["problems"]):
        raise typer.Exit(1)


def _examine_package(path: Path, *, as_json: bool) -> None:
    # What coremltools says as it is imported (no torch, no Core ML here) is not about the package.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from macai.mil.lint import lint

    report = lint(path)
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print_findings(report)
    if report.counts["error"]:
        raise typer.Exit(1)


def _examine_adapter(file: Path, *, as_json: bool) -> None:
    from macai.coreml.adapter_file import read_adapter_file

    facts = read_adapter_file(file).facts() | {"bytes": file.stat().st_size}
    if as_json:
        print(json.dumps({"path": str(file), **facts}, ensure_ascii=False))
        return
    print(f"{file}: {facts['bytes'] / 1e6:.1f} MB, all of it there and finite")
    print(f"name    {facts['name']}")
    print(f"rank    {facts['rank']}, {facts['layers']} layers: {', '.join(facts['targets'])}")
    for name, value in facts["base"].items():
        print(f"base    {name} {value}")


def examine() -> dict[str, Any]:
    """Return all that is printed; a missing or broken part is a value, never an exception."""
    report: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **versions()},
        "machine": machine(),
        "mlx": _mlx(),
        "blas": _blas(),
        "coremltools": _coreml_libraries(),
        "cache": _cache(),
    }
    report["problems"] = [
        {"what": what, "why": why, "essential": essential}
        for what, why, essential in _problems(report)
    ]
    return report


def _mlx() -> dict[str, Any]:
    try:
        import mlx.core as mx
    except ImportError as e:
        return {"error": str(e)}
    device = "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"
    n = _MATMUL_SIZE[device]
    a, b = mx.random.normal((n, n)), mx.random.normal((n, n))
    mx.eval(a, b)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        mx.eval(a @ b)
        seconds.append(time.perf_counter() - start)
    return {
        "backend": "metal" if mx.metal.is_available() else "cpu",
        "device": device,
        "chip": mx.device_info().get("device_name"),
        "matmul_gflops": round(2 * n**3 / min(seconds) / 1e9, 1),
    }


def _blas() -> dict[str, Any]:
    from macai.models.blas import load_fast_blas

    info = load_fast_blas()
    return {
        "found": info.found,
        "library": str(info.library) if info.library else None,
        "config": info.config,
        "threads": info.threads,
        "reason": info.reason,
    }


def _coreml_libraries() -> dict[str, str]:
    """Return for each native library "ok" or why it cannot be loaded.

    They are loaded by themselves: importing coremltools takes seconds and hides a missing one.
    """
    spec = importlib.util.find_spec("coremltools")
    if spec is None or spec.origin is None:
        return {}
    names = ["libmodelpackage", "libmilstoragepython"]
    names += ["libcoremlpython"] if sys.platform == "darwin" else []
    folder = Path(spec.origin).parent
    # A library registers its types once in a process: one that is loaded cannot be tried again.
    return {
        name: "ok" if f"coremltools.{name}" in sys.modules else _try_extension(name, folder)
        for name in names
    }


def _try_extension(name: str, folder: Path) -> str:
    path = folder / f"{name}.so"
    if not path.is_file():
        return "not in the wheel for this Python"
    loader = ExtensionFileLoader(name, str(path))
    try:
        importlib.util.module_from_spec(
            importlib.util.spec_from_file_location(name, path, loader=loader)  # type: ignore[arg-type]
        )
    except ImportError as e:
        return str(e)
    return "ok"


def _cache() -> dict[str, Any]:
    from macai.catalog import cached_models
    from macai.models.fetch import cache_home

    home = cache_home()
    existing = next(path for path in (home, *home.parents) if path.is_dir())
    return {
        "path": str(home),
        "writable": os.access(existing, os.W_OK | os.X_OK),
        "free_bytes": shutil.disk_usage(existing).free,
        "models": [path.name for path in cached_models()],
    }


def _problems(report: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Return (what does not work, why, whether nothing works then)."""
    found = [
        (f"{name} is not installed", f"install it: pip install {name}", True)
        for name in _ESSENTIAL
        if report["versions"][name] is None
    ]
    found += _mlx_problems(report["mlx"], report["blas"])
    found += _coreml_problems(report["coremltools"])
    if not report["cache"]["writable"]:
        why = f"{report['cache']['path']} cannot be written; set MACAI_HOME to another folder"
        found.append(("models cannot be downloaded or converted", why, False))
    if importlib.util.find_spec("pip") is None:
        why = f"this Python has no pip; run: {sys.executable} -m ensurepip"
        found.append(("the catalogue's models cannot be downloaded", why, False))
    return found


def _mlx_problems(mlx: dict[str, Any], blas: dict[str, Any]) -> list[tuple[str, str, bool]]:
    if "error" in mlx:
        return [("mlx cannot be imported", mlx["error"], True)]
    if mlx["backend"] != "cpu":
        return []
    found = [("training is slow", "no Metal: MLX computes on the CPU", False)]
    if mlx["matmul_gflops"] < _SLOW_GFLOPS:
        why = blas["reason"] or "the machine is busy, or the optimised BLAS is loaded but not used"
        found.append(("float32 is slow even for a CPU", why, False))
    return found


def _coreml_problems(libraries: dict[str, str]) -> list[tuple[str, str, bool]]:
    found = [
        ("nothing can be exported to Core ML", f"{name}: {state}", False)
        for name, state in (libraries or {"coremltools": "not installed"}).items()
        if state != "ok"
    ]
    if sys.platform != "darwin":
        why = "only macOS compiles and runs one; it can still be built here"
        found.append(("a Core ML package does not run", why, False))
    return found


def _print_report(report: dict[str, Any]) -> None:
    machine, mlx, blas, cache = (report[k] for k in ("machine", "mlx", "blas", "cache"))
    lines = [(name, version or "not installed") for name, version in report["versions"].items()]
    memory = f"{machine['memory_bytes'] / 2**30:.1f} GiB memory"
    lines += [
        ("system", f"{machine['system']}, {machine['architecture']}"),
        ("hardware", f"{mlx.get('chip') or 'unknown'}, {machine['cores']} cores, {memory}"),
    ]
    if "error" not in mlx:
        speed = f"float32 matmul {mlx['matmul_gflops']} GFLOP/s"
        lines.append(("backend", f"{mlx['backend']} on {mlx['device']}, {speed}"))
    if blas["found"]:
        lines.append(("BLAS", f"{blas['config']}, {blas['threads']} threads"))
    else:
        lines.append(("BLAS", f"MLX's own: {blas['reason']}"))
    lines += [(name, state) for name, state in report["coremltools"].items()]
    models = ", ".join(cache["models"]) or "no models yet"
    lines.append(("cache", f"{cache['path']}, {cache['free_bytes'] / 1e9:.0f} GB free, {models}"))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:{width}}  {text}")
    print()
    for problem in report["problems"]:
        mark = "broken" if problem["essential"] else "limited"
        print(f"{mark}: {problem['what']}: {problem['why']}")
    if not report["problems"]:
        print("everything works here")


def _print_findings(report: "Report") -> None:
    functions = ", ".join(report.functions)
    print(f"{report.package}: specification {report.specification_version}, {functions}")
    for applied in report.applied:
        _print_applied(applied)
    counts = report.counts
    print()
    print(", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items()))


def _print_applied(applied: "Applied") -> None:
    rule = applied.rule
    print(f"\n{applied.severity} {rule.id}: {rule.title}")
    for finding in applied.findings[:_PLACES]:
        places = [finding.function, finding.operation]
        where = ", ".join(place for place in places if place)
        print(f"  {where}: {finding.message}" if where else f"  {finding.message}")
    if len(applied.findings) > _PLACES:
        print(f"  and {len(applied.findings) - _PLACES} more")
    if applied.severity != "note":
        print(f"  why: {rule.why}")
        print(f"  fix: {rule.fix}")
