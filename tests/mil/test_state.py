"""States: what is read is what was written last, in fp16."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb

from macai.errors import PackageError
from macai.mil.frame import StateBuffers
from tests.mil.packages import build, run, state, tensor


def stale_state(cache, x):
    """read → add → update → read → mul: the second read must see the update."""
    updated = mb.add(x=mb.read_state(input=cache), y=x)
    mb.coreml_update_state(state=cache, value=updated)
    return mb.mul(x=mb.read_state(input=cache), y=np.float16(2))


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [(ct.PassPipeline.EMPTY, [[2, 4], [4, 8]]), (ct.PassPipeline.DEFAULT, [[0, 0], [2, 4]])],
    ids=["empty", "default"],
)
def test_the_default_passes_of_coremltools_read_a_stale_state(tmp_path, pipeline, expected):
    package = build(
        stale_state, state(2), tensor(2, dtype="fp16"), path=tmp_path / "p.mlpackage",
        pipeline=pipeline,
    )  # fmt: skip
    memory = package.make_state()
    x = np.array([1, 2], np.float16)
    outputs = [run(package, x, state=memory)[0].tolist() for _ in range(2)]
    assert outputs == expected
    assert memory["x0"].tolist() == [2, 4]


def cached(cache, x, position):
    """Put x at a position, twice over: the second write is to what the first one left."""
    end = mb.add(x=position, y=np.array([1], np.int32))
    old = mb.read_state(input=cache)
    first = mb.slice_update(x=old, update=x, begin=position, end=end)
    first = mb.coreml_update_state(state=cache, value=first)
    twice = mb.slice_update(x=first, update=mb.add(x=x, y=x), begin=position, end=end)
    twice = mb.coreml_update_state(state=cache, value=twice)
    return mb.identity(x=first), mb.reduce_sum(x=twice, axes=[0])


def test_an_update_in_place_changes_nothing_that_was_read_before(tmp_path):
    package = build(
        cached, state(3), tensor(1, dtype="fp16"), tensor(1, dtype="int32"),
        path=tmp_path / "p.mlpackage",
    )  # fmt: skip
    memory = package.make_state()
    x = np.array([1], np.float16)
    first, total = run(package, x, np.array([0]), state=memory)
    assert (first.tolist(), total) == ([1, 0, 0], 2)
    first, total = run(package, x, np.array([2]), state=memory)
    assert (first.tolist(), total) == ([2, 0, 1], 4)
    assert memory["x0"].tolist() == [2, 0, 2]


def test_a_view_of_the_old_state_still_shows_it_after_an_update(tmp_path):
    def update(cache, x, position):
        end = mb.add(x=position, y=np.array([1], np.int32))
        old = mb.read_state(input=cache)
        view = mb.reshape(x=old, shape=[1, 3])
        new = mb.slice_update(x=old, update=x, begin=position, end=end)
        return mb.add(x=view, y=mb.coreml_update_state(state=cache, value=new))

    package = build(
        update, state(3), tensor(1, dtype="fp16"), tensor(1, dtype="int32"),
        path=tmp_path / "p.mlpackage",
    )  # fmt: skip
    memory = package.make_state()
    ones = [run(package, np.ones(1, np.float16), np.array([i]), state=memory)[0] for i in (1, 2)]
    assert [o.tolist() for o in ones] == [[[0, 1, 0]], [[0, 2, 1]]]


def test_an_update_without_a_view_of_the_old_state_makes_no_copy(tmp_path, monkeypatch):
    def update(cache, x, position):
        end = mb.add(x=position, y=np.array([1], np.int32))
        square = mb.mul(x=x, y=x)
        new = mb.slice_update(x=mb.read_state(input=cache), update=square, begin=position, end=end)
        return mb.identity(x=mb.coreml_update_state(state=cache, value=new))

    package = build(
        update, state(3), tensor(1, dtype="fp16"), tensor(1, dtype="int32"),
        path=tmp_path / "p.mlpackage",
    )  # fmt: skip
    monkeypatch.setattr(StateBuffers, "write", None)
    memory = package.make_state()
    third = np.array([1 / 3], np.float16)
    (new,) = run(package, third, np.array([1]), state=memory)
    ninth = (third * third).item()  # rounded: float32 would hold more of it
    assert new.tolist() == memory["x0"].tolist() == [0, ninth, 0]


def test_states_are_rounded_to_fp16_at_any_precision(tmp_path):
    def add(cache, x):
        value = mb.mul(x=mb.add(x=mb.read_state(input=cache), y=x), y=x)
        return mb.identity(x=mb.coreml_update_state(state=cache, value=value))

    package = build(add, state(1), tensor(1, dtype="fp16"), path=tmp_path / "p.mlpackage")
    for precision in ("fp32", "fp16"):
        memory = package.make_state()
        x = np.array([1.0009765625], np.float16)  # its square has too many bits
        (y,) = run(package, x, state=memory, precision=precision)
        assert y[0] == memory["x0"][0] == np.float16(x[0] * x[0])


def test_a_failed_run_leaves_states_as_they_were(tmp_path):
    def update(cache, x, i):
        new = mb.coreml_update_state(state=cache, value=mb.add(x=mb.read_state(input=cache), y=x))
        return mb.gather(x=new, indices=i)

    package = build(
        update, state(2), tensor(2, dtype="fp16"), tensor(1, dtype="int32"),
        path=tmp_path / "p.mlpackage",
    )  # fmt: skip
    memory = package.make_state()
    with pytest.raises(PackageError, match="index 5 is out of bounds"):
        run(package, np.ones(2, np.float16), np.array([5]), state=memory)
    assert memory["x0"].tolist() == [0, 0]
    run(package, np.ones(2, np.float16), np.array([1]), state=memory)
    assert memory["x0"].tolist() == [1, 1]


def test_a_state_of_another_shape_or_type_is_refused(tmp_path):
    package = build(stale_state, state(2), tensor(2, dtype="fp16"), path=tmp_path / "p.mlpackage")
    x = np.zeros(2, np.float16)
    with pytest.raises(PackageError, match="missing states 'x0'"):
        run(package, x)
    for wrong in (np.zeros(3, np.float16), np.zeros(2, np.float32)):
        with pytest.raises(PackageError, match=r"state 'x0' is float\d+ \[\d\], not fp16 \[2\]"):
            run(package, x, state={"x0": wrong})
