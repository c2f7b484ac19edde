"""What processes that macai starts have in common: how they end, on either side."""

import os
import select
import subprocess

END_SECONDS = 10.0
"""How long a process that has reason to end may take."""


def end_with_parent(connection_file: int) -> None:
    """End this process at once when its parent closes the connection or is gone itself."""
    hang_up = select.poll()
    hang_up.register(connection_file, 0)  # which is reported all the same
    hang_up.poll()
    os._exit(0)


def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process that has reason to end, and return its exit code."""
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:  # a stopped one, say
        process.kill()
        return process.wait()
