"""A process that measures one section: it holds nothing else, so its memory is the section's.

It does a case when it is told to, so that the samples of all sections can take turns.
"""

import logging
import os
import signal
import threading
import time
import traceback
from multiprocessing.connection import Connection

from macai.bench.figure import Opener
from macai.errors import MacaiError


def serve(connection: Connection, opener: Opener) -> None:
    """Open, say what there is to measure, and measure until the other end hangs up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what becomes of the report
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    # What libraries say as they are imported (no torch, no Core ML here) is not about a figure.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        cases = opener()
        connection.send([dict(case.figures) for case in cases])
        while True:
            number = connection.recv()
            before = time.process_time()
            values = dict(cases[number].sample())
            connection.send((values, time.process_time() - before))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # at once: there is nothing to save
    except MacaiError as e:
        connection.send(e)
    except Exception as e:
        connection.send(RuntimeError(f"{type(e).__name__}: {e}\n{traceback.format_exc()}"))
    threading.Event().wait()  # until the parent ends this process
