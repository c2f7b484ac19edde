"""Which machine and which versions a figure was measured with; nothing personal."""

import importlib.metadata
import os
import platform
from typing import Any

import macai

PACKAGES = (
    "macai",
    "mlx",
    "mlx-lm",
    "coremltools",
    "transformers",
    "tokenizers",
    "huggingface-hub",
    "numpy",
    "typer",
)


def versions() -> dict[str, str | None]:
    """Return the version of each package that matters; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    if found["macai"] is None:  # run from a checkout that is not installed
        found["macai"] = macai.__version__
    return found


def machine() -> dict[str, Any]:
    """Return system, architecture, number of cores and bytes of memory."""
    mac = platform.mac_ver()[0]
    return {
        "system": f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }
