"""What a process of the benchmark holds, between two samples."""

from collections.abc import Mapping

import mlx.core as mx

from macai.bench.figure import Figure, Section
from macai.bench.memory import footprint_bytes


class Held:
    """Memory of the whole process, and what MLX's allocator keeps of it for later arrays."""

    def __init__(self, section: Section, subject: str) -> None:
        names = {"process": "process memory", "cache": "allocator cache"}
        self.figures: Mapping[str, Figure] = {
            key: Figure(section=section, name=name, subject=subject, unit="bytes", better="lower")
            for key, name in names.items()
            if key != "process" or footprint_bytes() is not None
        }

    def sample(self) -> Mapping[str, float]:
        """Ask for both."""
        found = {"process": footprint_bytes(), "cache": mx.get_cache_memory()}
        return {key: float(found[key] or 0) for key in self.figures}
