"""A process that measures one section: `python -m macai.bench.worker CONNECTION`, see `Sections`.

It holds nothing else, so its memory is the section's. It does a case when it is told to, so that
the samples of all sections can take turns. It is gone once its parent is.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import macai
from macai.bench.figure import Opener
from macai.child import end_with_parent
from macai.errors import MacaiError
from macai.page.machine import versions

PROTOCOL = 1
"""Raise it where messages change, or Figure or Work: another version may be at the other end."""


def main(connection_file: int) -> None:
    """Say who this is, open what is sent, say what there is to measure, and measure it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what becomes of the report
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=end_with_parent, args=(connection_file,), daemon=True).start()
    # What libraries say as they are imported (no torch, no Core ML here) is not about a figure.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    connection = Connection(connection_file)
    try:
        connection.send(_self())
        _serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # at once: there is nothing to save
    except MacaiError as e:
        connection.send(e)
    except Exception as e:
        connection.send(RuntimeError(f"{type(e).__name__}: {e}\n{traceback.format_exc()}"))
    threading.Event().wait()  # until the parent hangs up


def _self() -> dict[str, Any]:
    """Plain values only: any version must be able to read them."""
    return {
        "protocol": PROTOCOL,
        "version": macai.__version__,
        "versions": versions(),
        "folder": str(Path(macai.__file__).resolve().parent),
    }


def _serve(connection: Connection) -> None:
    opener: Opener = connection.recv()
    cases = opener()
    connection.send([dict(case.figures) for case in cases])
    while True:
        number = connection.recv()
        before = time.process_time()
        values = dict(cases[number].sample())
        connection.send((values, time.process_time() - before))


if __name__ == "__main__":
    main(int(sys.argv[1]))
