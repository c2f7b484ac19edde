"""A signal that comes while a module is imported ends the command once it is."""

import signal
import subprocess
import sys
import time

import pytest

SWALLOWING = """
import time

print("importing", flush=True)
try:
    time.sleep(0.5)  # the signal comes now
except BaseException:  # as some libraries do
    print("swallowed", flush=True)
whole = True
"""

MAIN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from macai.cli.interrupt import end_between_imports

end_between_imports()
try:
    import swallowing
    time.sleep(60)
finally:
    print("whole" if swallowing.whole else "", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_in_an_import_is_kept_until_its_end(tmp_path, number, code):
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert out == "whole\n"
    assert process.returncode == code, err
    assert time.monotonic() - began < 20


def test_what_ignores_interrupts_goes_on_ignoring_them():
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " + (
        "from macai.cli.interrupt import end_between_imports; end_between_imports(); "
        "import os; os.kill(os.getpid(), signal.SIGINT); print('on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "on\n"
