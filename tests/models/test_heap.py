import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import mlx.core as mx
mx.set_default_device(mx.cpu)
faults = []
for _ in range(10):
    arrays = [mx.ones((4 << 20,)) for _ in range(8)]  # 16 MiB each
    mx.eval(arrays)
    del arrays
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[1])
"""


def page_faults(before: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", before + FAULTS],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")},
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_arrays_get_the_memory_of_those_before_them():
    pages = 8 * 8 * (16 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert page_faults("import macai.models\n") < pages / 100
