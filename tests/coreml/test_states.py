"""States: what a call leaves is what the next one finds."""

import mlx.core as mx
import numpy as np
import pytest

from macai.coreml import export
from macai.coreml.states import state_chain
from macai.errors import ExportError, UsageError
from macai.mil import open_package
from tests.coreml.same import traced_graph

CACHE = mx.zeros((4, 2))


def write(cache, row, place):
    return mx.slice_update(cache, row[None], place, axes=(0,))


class Stateful:
    """A package and what MLX does, step by step, with the states of both."""

    def __init__(self, fn, path, *, inputs, states, outputs=1, precision="fp32"):
        self.fn, self.count = fn, outputs
        export(
            fn,
            inputs,
            path,
            outputs=[f"y{n}" for n in range(outputs)],
            states=states,
            precision=precision,
        )
        self.package = open_package(path)
        self.memory = self.package.make_state()
        self.names = list(states)
        self.states = [mx.zeros_like(s) for s in states.values()]
        self.inputs = list(inputs)

    def step(self, *arrays):
        results = self.fn(*arrays, *self.states)
        wanted, self.states = results[: self.count], list(results[self.count :])
        given = {n: np.array(a) for n, a in zip(self.inputs, arrays, strict=True)}
        got = self.package.functions["main"].run(given, state=self.memory).outputs
        for name, array in zip(got, wanted, strict=True):
            np.testing.assert_allclose(got[name], np.array(array), rtol=2e-3, atol=1e-3)
        for name, array in zip(self.names, self.states, strict=True):
            np.testing.assert_allclose(self.memory[name], np.array(array), rtol=2e-3, atol=1e-3)

    @property
    def ops(self):
        operations = self.package.functions["main"].operations
        return [op.type for op in operations if op.type != "const"]


def three_steps(stateful):
    for n in range(3):
        stateful.step(mx.array([1.0 + n, 2.0]), mx.array([n]))


ROW = {"row": mx.zeros(2), "place": mx.zeros(1, mx.int32)}


def test_a_read_after_a_write_sees_it(tmp_path):
    def fn(row, place, cache):
        cache = write(cache, row, place)
        return cache.sum(axis=0), cache

    stateful = Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states={"cache": CACHE})
    three_steps(stateful)


def test_reads_before_and_after_a_write_see_what_was_then(tmp_path):
    def fn(row, place, cache):
        new = write(cache, row, place)
        return cache.sum(axis=0), new.sum(axis=0), new

    stateful = Stateful(
        fn, tmp_path / "p.mlpackage", inputs=ROW, states={"cache": CACHE}, outputs=2
    )
    three_steps(stateful)


def test_several_writes_are_a_chain_of_updates(tmp_path):
    def fn(row, place, cache):
        first = write(cache, row, place)
        second = write(first, first.sum(axis=0), place + 1)
        third = mx.slice_update(second, second[:1] * 2, mx.array([3]), axes=(0,))
        return third[1:].sum(axis=0), third

    stateful = Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states={"cache": CACHE})
    assert stateful.ops.count("write_state") == 3
    for n in range(2):
        stateful.step(mx.array([1.0 + n, 2.0]), mx.array([n]))


def test_a_write_at_a_place_known_now_is_a_write_too(tmp_path):
    def fn(row, place, cache):
        new = mx.slice_update(cache, row[None], mx.array([2]), axes=(0,))
        return new.sum(), new

    stateful = Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states={"cache": CACHE})
    three_steps(stateful)


def test_a_state_may_be_replaced_as_a_whole(tmp_path):
    def fn(row, place, cache):
        new = mx.concatenate([cache[1:], row[None]])
        return new.sum(axis=0), new

    stateful = Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states={"cache": CACHE})
    three_steps(stateful)


def test_a_state_may_be_left_as_it_is(tmp_path):
    def fn(row, place, cache, other):
        cache = write(cache, row, place)
        return row + 1, cache, other

    states = {"cache": CACHE, "other": CACHE}
    three_steps(Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states=states))


def test_a_state_that_is_only_read_is_not_written(tmp_path):
    def fn(row, place, cache, factors):
        cache = write(cache, row * factors[1], place)
        return cache.sum(axis=0), cache, factors

    states = {"cache": CACHE, "factors": CACHE}
    stateful = Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states=states)
    assert stateful.ops.count("write_state") == 1
    three_steps(stateful)
    stateful.memory["factors"][1] = 3
    stateful.states[1] = stateful.states[1].at[1].add(3.0)
    three_steps(stateful)


def test_a_state_may_be_an_output_as_well(tmp_path):
    def fn(row, place, cache):
        cache = write(cache, row, place)
        return cache, cache

    three_steps(Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states={"cache": CACHE}))


def test_states_may_change_places(tmp_path):
    def fn(row, place, a, b):
        return a + b, write(b, row, place), a

    states = {"a": CACHE, "b": CACHE}
    three_steps(Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states=states))


def test_two_states_may_get_one_value(tmp_path):
    def fn(row, place, a, b):
        new = write(a, row, place)
        return b.sum(), new, new

    states = {"a": CACHE, "b": CACHE}
    three_steps(Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states=states))


def test_a_write_that_adds_is_a_write(tmp_path):
    def fn(row, place, cache):
        new = cache.at[1:2].add(row[None])
        return new.sum(), new

    three_steps(Stateful(fn, tmp_path / "p.mlpackage", inputs=ROW, states={"cache": CACHE}))


def test_states_of_a_float16_package(tmp_path):
    def fn(row, place, cache):
        cache = write(cache, row, place)
        return cache.sum(axis=0) * 2, cache

    stateful = Stateful(
        fn, tmp_path / "p.mlpackage", inputs=ROW, states={"cache": CACHE}, precision="fp16"
    )
    three_steps(stateful)
    assert "cast" not in stateful.ops


def test_a_chain_is_the_writes_from_the_first_to_the_last():
    def fn(cache, row, place):
        one = write(cache, row, place)
        two = write(one, row, place + 1)
        return two, one + 1, cache

    graph = traced_graph(fn, CACHE, mx.zeros(2), mx.zeros(1, mx.int32))
    two, other, same = graph.outputs
    chain = state_chain(graph, graph.inputs[0], two)
    assert len(chain) == 2
    assert chain[-1] == two.name
    assert state_chain(graph, graph.inputs[0], other) == []
    assert state_chain(graph, graph.inputs[0], same) == []
    assert state_chain(graph, graph.inputs[1], two) == []


def test_a_state_keeps_its_shape_and_its_number(tmp_path):
    path = tmp_path / "p.mlpackage"
    with pytest.raises(UsageError, match=r"state cache is \[4, 2\], its new value \[5, 2\]"):
        export(
            lambda x, c: (x, mx.concatenate([c, x])),
            {"x": mx.zeros((1, 2))},
            path,
            states={"cache": CACHE},
        )
    with pytest.raises(UsageError, match="returns 1 arrays, its outputs and states are 2"):
        export(lambda x, c: x, {"x": mx.zeros(2)}, path, states={"cache": CACHE})
    with pytest.raises(UsageError, match="need iOS18, not iOS17"):
        export(
            lambda x, c: (x, c),
            {"x": mx.zeros(2)},
            path,
            states={"cache": CACHE},
            target="iOS17",
        )
    assert not path.exists()


def test_a_state_of_integers_is_refused(tmp_path):
    with pytest.raises(ExportError, match="state count is int32"):
        export(
            lambda x, c: (x, c + 1),
            {"x": mx.zeros(2)},
            tmp_path / "p.mlpackage",
            states={"count": mx.zeros(1, mx.int32)},
        )
