"""A signal that comes where an exception would be lost ends the command a little later."""

import signal
import subprocess
import sys

import pytest

IMPORTED = """
import time

print("there", flush=True)
try:
    time.sleep(0.5)  # the signal comes now
except BaseException:  # as some libraries do
    print("swallowed", flush=True)
"""

FINALISER = """
import time

class Node:
    def __del__(self):
        print("there", flush=True)
        time.sleep(0.5)

def drop():
    node = Node()
"""

MAIN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from macai.cli.interrupt import end_on_signal

end_on_signal()
try:
    import module
    if hasattr(module, "drop"):
        module.drop()
    time.sleep(60)
finally:
    print("ended", flush=True)
"""


@pytest.mark.parametrize("module", [IMPORTED, FINALISER], ids=["import", "finaliser"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_is_kept_until_it_can_end_the_command(tmp_path, module, number, code):
    (tmp_path / "module.py").write_text(module)
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("ended\n", code), err


def test_what_ignores_interrupts_goes_on_ignoring_them():
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " + (
        "from macai.cli.interrupt import end_on_signal; end_on_signal(); "
        "import os; os.kill(os.getpid(), signal.SIGINT); print('on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "on\n"
