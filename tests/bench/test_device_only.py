"""What runs on a Mac only, with what it would be told there."""

import os
import sys
import time
from types import SimpleNamespace

import pytest

from macai.bench.memory import footprint_bytes
from macai.bench.others import Others
from macai.bench.placement import counted
from macai.bench.power import energy, watts, why_no_power

# As powermetrics prints it: two samples of 200 ms.
PRINTED = """
**** Processor usage ****
CPU Power: 800 mW
GPU Power: 7400 mW
ANE Power: 0 mW
Combined Power (CPU + GPU + ANE): 8200 mW

CPU Power: 1000 mW
GPU Power: 7600 mW
ANE Power: 0 mW
"""


def test_watts_are_the_mean_of_what_powermetrics_printed():
    assert watts(PRINTED) == pytest.approx({"cpu": 0.9, "gpu": 7.5, "neuralEngine": 0.0})
    assert watts("powermetrics must be invoked as the superuser") == {}


def test_the_energy_of_a_token_is_all_watts_over_the_rate(monkeypatch):
    monkeypatch.setattr("macai.bench.power.SECONDS", 0.0)
    found = energy(lambda: 42.0, "decode", watch=lambda work: work() or watts(PRINTED))
    assert found["joules"] == pytest.approx(8.4 / 42)
    assert energy(lambda: 42.0, "decode", watch=lambda work: work() or {}) is None


@pytest.mark.skipif(sys.platform == "darwin", reason="here there is powermetrics")
def test_elsewhere_it_is_said_why_there_are_no_watts():
    assert why_no_power() == "powermetrics exists on macOS only"


def test_operations_are_counted_by_the_unit_that_is_preferred_and_constants_are_not():
    class MLNeuralEngineComputeDevice: ...

    class MLCPUComputeDevice: ...

    def operation(name, device):
        return SimpleNamespace(operator_name=name, device=device)

    operations = [
        operation("ios18.const", MLCPUComputeDevice()),
        operation("ios18.linear", MLNeuralEngineComputeDevice()),
        operation("ios18.softmax", MLNeuralEngineComputeDevice()),
        operation("ios18.gather", MLCPUComputeDevice()),
        operation("ios18.odd", None),
    ]
    plan = SimpleNamespace(
        get_compute_device_usage_for_mlprogram_operation=lambda o: (
            o.device and SimpleNamespace(preferred_compute_device=o.device)
        )
    )
    function = SimpleNamespace(block=SimpleNamespace(operations=operations))
    assert counted(plan, function) == {"neuralEngine": 2, "cpu": 1, "unknown": 1}


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no such system call")
def test_a_process_that_takes_memory_has_a_larger_footprint():
    before = footprint_bytes()
    taken = bytearray(b"x") * (64 << 20)
    after = footprint_bytes()
    assert before is not None
    assert after is not None
    assert 60e6 < after - before < 200e6
    del taken


def test_own_work_is_no_other_program(monkeypatch):
    # Seconds on the clock, of all processors, and of this process.
    moments = iter([(10.0, 100.0, 5.0), (12.0, 103.6, 5.2), (12.01, 104.0, 5.2)])
    monkeypatch.setattr(Others, "_now", lambda self: next(moments))
    others = Others()
    assert others(0.4) == pytest.approx((3.6 - 0.2 - 0.4) / 2.0)
    assert others(0.0) is None  # too short to say


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says it in /proc/stat")
def test_no_more_processors_are_busy_than_there_are():
    others = Others()
    time.sleep(0.3)
    taken = others(0.0)
    assert taken is not None
    assert 0 <= taken <= (os.cpu_count() or 1) * 1.3
