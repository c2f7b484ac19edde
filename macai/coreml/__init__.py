"""MLX function to Core ML package: trace, graph, passes, lower, package."""

import logging
import os

# What coremltools says as it is imported (no torch, no Core ML here) is nothing a user asked for.
logging.getLogger("coremltools").setLevel(logging.ERROR)
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from macai.coreml.api import Exported, ExportFunction, export, export_functions  # noqa: E402
from macai.coreml.description import Metadata  # noqa: E402
from macai.coreml.flexible import Size  # noqa: E402
from macai.coreml.lower import Settings  # noqa: E402

__all__ = [
    "ExportFunction",
    "Exported",
    "Metadata",
    "Settings",
    "Size",
    "export",
    "export_functions",
]
