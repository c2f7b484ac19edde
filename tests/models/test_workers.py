import os
import subprocess
import sys
import threading
import time

import mlx.core as mx
import pytest

from macai.models.blas import load_fast_blas, set_blas_threads
from macai.models.workers import MOST, Workers, worker_count, workers


def test_results_come_in_the_order_of_the_items_whatever_takes_longest():
    def build(number):
        return mx.sum(mx.full((1, 400_000 // (number + 1)), 1.0)) * 0 + number

    with workers(3) as pool:
        assert [int(x.item()) for x in pool.map(build, range(12))] == list(range(12))


def test_one_item_is_built_at_a_time():
    building, overlaps = threading.Lock(), []

    def build(number):
        overlaps.append(not building.acquire(blocking=False))
        time.sleep(0.005)
        building.release()
        return mx.array(number)

    with workers(3) as pool:
        assert len(list(pool.map(build, range(9)))) == 9
    assert overlaps == [False] * 9


@pytest.mark.parametrize("count", [1, 2])
def test_results_are_evaluated_by_the_thread_that_built_them(count):
    names = []

    def build(number):
        names.append(threading.current_thread().name)
        return mx.array(number)

    with workers(count) as pool:
        list(pool.map(build, range(4)))
    assert all(name.startswith("macai-worker") == (count > 1) for name in names)


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_reaches_the_caller_and_the_threads_end(count):
    def build(number):
        if number == 2:
            raise ValueError("two")
        return mx.array(number)

    with workers(count) as pool, pytest.raises(ValueError, match="two"):
        list(pool.map(build, range(5)))
    assert not [t for t in threading.enumerate() if t.name.startswith("macai-worker")]


def test_results_given_up_half_way_are_no_obstacle():
    with workers(2) as pool:
        results = pool.map(mx.array, range(20))
        assert next(results).item() == 0


def test_the_share_of_matrix_products_is_given_back():
    if not load_fast_blas().found:
        pytest.skip("there is no OpenBLAS here to share")
    before = set_blas_threads(2)
    try:
        with workers(2):
            assert set_blas_threads(1) == max(1, len(os.sched_getaffinity(0)) // 2)
        assert set_blas_threads(2) == 2
    finally:
        set_blas_threads(before)


def test_there_is_at_least_one_worker_and_one_alone_needs_no_thread():
    assert 1 <= worker_count() <= MOST
    with workers(1) as pool:
        assert pool.pool is None
    assert [x.item() for x in Workers(None).map(mx.array, [1, 2])] == [1, 2]


def test_a_process_that_ends_right_after_ends_well():
    code = """
import macai.models
import mlx.core as mx
from macai.models.workers import workers
with workers(2) as pool:
    print(sum(x.item() for x in pool.map(lambda i: mx.ones((64, 64)).sum() * i, range(8))))
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "114688.0\n"), done.stderr
