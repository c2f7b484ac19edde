"""A worker process: `python -m macai.train.worker CONNECTION MEMORY`, started by `Team`.

It computes the parts of steps that it is sent. It prints nothing, and is gone once its parent is.
"""

import signal
import sys
import threading
from multiprocessing.connection import Connection

import mlx.core as mx

from macai.child import end_with_parent
from macai.errors import TrainingError
from macai.train.job import Board, Work, base_sums
from macai.train.optimizer import joined, put


def main(connection_file: int, memory_file: int) -> None:
    """Serve until the other end of the connection is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what becomes of the step
    threading.Thread(target=end_with_parent, args=(connection_file,), daemon=True).start()
    mx.set_default_device(mx.cpu)
    connection = Connection(connection_file)
    try:
        _serve(connection, memory_file)
    except EOFError:
        return
    except Exception as e:  # for the parent to report, whatever it is
        connection.send(" ".join(str(e).split()) or type(e).__name__)
        threading.Event().wait()  # until the parent closes the connection


def _serve(connection: Connection, memory_file: int) -> None:
    job: Work
    job, number, expected = connection.recv()
    opened = job.opened()
    model = opened.model
    if base_sums(model) != expected:
        raise TrainingError(f"{job.model} holds other weights than the model that is trained")
    board = Board(memory_file, job.workers, joined(model.trainable_parameters()).size)
    model.train()
    with opened.ops:
        while True:
            parts, seed = connection.recv()
            put(model, board.read(0))
            sums = opened.gradient(job.made(parts), seed)
            board.write(number, sums.vector)
            counts = {name: getattr(sums, name) for name in sums.__slots__ if name != "vector"}
            connection.send(counts)
            del sums  # or its gradient would stay until the next one is there


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
