import sys

import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.train import machine
from macai.train.machine import available_bytes, cores, workers_for

GB = 1 << 30


class Weights(nn.Module):
    """So many bytes of weights that nothing evaluates."""

    def __init__(self, size):
        super().__init__()
        self.weight = mx.zeros((size // 4,))


@pytest.fixture
def decide(monkeypatch):
    def decide(size=GB, asked=0, *, before=0, device=mx.cpu, cpus=2, memory=64 * GB):
        monkeypatch.setattr(machine.mx, "default_device", lambda: device)
        monkeypatch.setattr(machine, "cores", lambda: cpus)
        monkeypatch.setattr(machine, "available_bytes", lambda: memory)
        return workers_for(Weights(size), asked, before=before)

    return decide


def test_two_processes_compute_where_they_fit_twice_over_and_have_enough_to_do(decide):
    assert decide() == decide(cpus=16) == decide(memory=4 * GB) == 2
    assert decide(cpus=1) == decide(memory=4 * GB - 1) == decide(size=1 << 20) == 1


def test_a_number_is_taken_as_it_is_but_on_a_gpu(decide):
    assert decide(asked=5, cpus=1, memory=0, size=4) == 5
    assert decide(asked=1) == 1
    assert decide(asked=5, device=mx.gpu) == decide(before=2, device=mx.gpu) == 1


def test_a_run_goes_on_with_as_many_as_before_if_there_are_the_cores(decide):
    assert decide(before=2, memory=0) == decide(before=2, cpus=8) == 2
    assert decide(before=3, cpus=2) == 2
    assert decide(before=1) == 1
    assert decide(asked=1, before=2) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_that_is_left_is_that_of_the_system_or_of_its_container(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2048 kB\n"}

    def read_text(path, encoding):
        if str(path) not in files:
            raise FileNotFoundError
        return files[str(path)]

    monkeypatch.setattr(machine.Path, "read_text", read_text)
    assert available_bytes() == 2 << 20
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert available_bytes() == 2 << 20
    files["/sys/fs/cgroup/memory.max"] = "65536\n"
    assert available_bytes() == 65536
    files.clear()
    assert available_bytes() == 0


def test_there_is_at_least_one_core():
    assert cores() >= 1
