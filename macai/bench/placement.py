"""Which unit Core ML plans to run each operation of a package on; macOS only.

Written to coremltools' documentation (9.0: MLComputePlan, compute_device). Not run by us: there is
no Mac here.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from macai.coreml.device import UNITS


def placements(folder: Path, packages: list[str], subject: str) -> list[dict[str, Any]]:
    """Return a report's rows: of each function and choice of units how many operations go where.

    Constants are left out: nothing runs them.
    """
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    found = []
    for package in packages:
        compiled = ct.models.utils.compile_model(str(folder / package))
        for units in ("cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine"):
            plan = MLComputePlan.load_from_path(
                path=compiled, compute_units=getattr(ct.ComputeUnit, UNITS[units])
            )
            for name, function in plan.model_structure.program.functions.items():
                counts = counted(plan, function)
                row = {"subject": subject, "function": name, "units": units, "operations": counts}
                found.append(row)
    return found


def counted(plan: Any, function: Any) -> dict[str, int]:
    """Return how many of a function's operations each unit is preferred for."""
    counts: Counter[str] = Counter()
    for operation in function.block.operations:
        if operation.operator_name.rpartition(".")[2] == "const":  # "ios18.const" as well
            continue
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        device = type(usage.preferred_compute_device).__name__ if usage else ""
        counts[_NAMES.get(device, "unknown")] += 1
    return dict(counts)


_NAMES = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "neuralEngine",
}
