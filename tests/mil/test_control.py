"""Branches, loops, lists, and what is said of random numbers."""

import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb

from macai.errors import PackageError
from tests.mil.packages import build, run, tensor


def test_a_branch_is_taken_by_its_condition_and_sees_what_is_outside(tmp_path):
    def branch(x):
        doubled = mb.mul(x=x, y=np.float32(2))
        inner = lambda: mb.cond(  # noqa: E731
            pred=mb.greater(x=mb.reduce_sum(x=x), y=np.float32(10)),
            _true_fn=lambda: mb.add(x=doubled, y=np.float32(100)),
            _false_fn=lambda: mb.add(x=doubled, y=np.float32(1)),
        )
        y = mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x), y=np.float32(0)),
            _true_fn=inner,
            _false_fn=lambda: mb.identity(x=x),
        )
        return mb.add(x=y, y=doubled)

    package = build(branch, tensor(2), path=tmp_path / "p.mlpackage")
    for x, expected in [([1, 2], [5, 9]), ([-1, -2], [-3, -6]), ([8, 8], [132, 132])]:
        assert run(package, np.array(x, np.float32))[0].tolist() == expected


def test_a_loop_runs_until_its_condition_is_false(tmp_path):
    def loop(x, n):
        return mb.while_loop(
            _cond=lambda i, y: mb.less(x=i, y=n),
            _body=lambda i, y: (mb.add(x=i, y=np.int32(1)), mb.add(x=mb.mul(x=y, y=x), y=x)),
            loop_vars=(np.int32(0), x),
        )[1]

    package = build(loop, tensor(1), tensor(1, dtype="int32"), path=tmp_path / "p.mlpackage")
    for n, expected in [(0, 2), (1, 6), (3, 30)]:
        assert run(package, np.array([2], np.float32), np.array([n])) == [[expected]]


def test_loop_variables_may_change_places(tmp_path):
    def loop(x, y):
        _, a, b = mb.while_loop(
            _cond=lambda i, a, b: mb.less(x=i, y=np.int32(3)),
            _body=lambda i, a, b: (mb.add(x=i, y=np.int32(1)), b, mb.add(x=a, y=b)),
            loop_vars=(np.int32(0), x, y),
        )
        return a, b

    package = build(loop, tensor(1), tensor(1), path=tmp_path / "p.mlpackage")
    a, b = run(package, np.array([1], np.float32), np.array([2], np.float32))
    assert (a, b) == ([5], [8])


def test_a_list_is_written_read_and_gathered(tmp_path):
    def lists(x):
        empty = mb.make_list(init_length=2, elem_shape=(2,), dtype="fp32")
        first = mb.list_write(ls=empty, index=0, value=x)
        both = mb.list_write(ls=first, index=1, value=mb.mul(x=x, y=np.float32(2)))
        longer = mb.list_scatter(ls=both, indices=[0, 3], value=mb.stack(values=[x, x], axis=0))
        return (
            mb.list_read(ls=both, index=1),
            mb.list_gather(ls=longer, indices=[3, 1]),
            mb.list_length(ls=longer),
        )

    package = build(lists, tensor(2), path=tmp_path / "p.mlpackage")
    read, gathered, length = run(package, np.array([1, 2], np.float32))
    assert read.tolist() == [2, 4]
    assert gathered.tolist() == [[1, 2], [2, 4]]
    assert length == 4


def test_an_element_that_was_never_written_is_not_read(tmp_path):
    def lists(x):
        ls = mb.make_list(init_length=2, elem_shape=(2,), dtype="fp32")
        return mb.list_read(ls=mb.list_write(ls=ls, index=0, value=x), index=1)

    package = build(lists, tensor(2), path=tmp_path / "p.mlpackage")
    with pytest.raises(PackageError, match="element 1 of a list of 2 was never written"):
        run(package, np.zeros(2, np.float32))


def test_random_numbers_are_refused(tmp_path):
    def noise(x):
        return mb.add(x=x, y=mb.random_normal(shape=[2]))

    package = build(noise, tensor(2), path=tmp_path / "p.mlpackage")
    with pytest.raises(PackageError, match="random numbers are not the same anywhere"):
        run(package, np.zeros(2, np.float32))
