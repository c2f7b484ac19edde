import signal
import threading
import time

import pytest
from threadpoolctl import threadpool_info

from macai.coreml.sd.precisions import PRECISIONS, in_all

PATIENCE = 60.0  # seconds; nothing here waits for them unless it is wrong


def test_all_run_at_once_and_each_gives_its_own():
    together = threading.Barrier(len(PRECISIONS), timeout=PATIENCE)

    def run(precision, stop):
        together.wait()
        return precision

    assert in_all(run) == {precision: precision for precision in PRECISIONS}


def test_their_products_share_the_cores_and_have_all_of_them_afterwards():
    def threads():
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    before, together = threads(), threading.Barrier(len(PRECISIONS), timeout=PATIENCE)
    seen = []

    def run(precision, stop):
        seen.append(threads())
        together.wait()  # nobody has ended yet

    in_all(run)
    assert threads() == before
    most = max(before, default=1)
    assert seen == [[max(1, most // len(PRECISIONS))] * len(before)] * len(PRECISIONS)


@pytest.mark.parametrize("failing", PRECISIONS)
def test_when_one_fails_the_others_are_told_to_stop(failing):
    told = []

    def run(precision, stop):
        if precision == failing:
            raise ValueError(precision)
        told.append(stop.wait(PATIENCE))

    with pytest.raises(ValueError, match=failing):
        in_all(run)
    assert told == [True]


def test_an_interrupted_program_tells_all_to_stop():
    told, together = [], threading.Barrier(len(PRECISIONS), timeout=PATIENCE)

    def run(precision, stop):
        together.wait()
        if precision == PRECISIONS[0]:
            time.sleep(0.5)  # by then it waits for results
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        told.append(stop.wait(PATIENCE))

    with pytest.raises(KeyboardInterrupt):
        in_all(run)
    assert told == [True] * len(PRECISIONS)
