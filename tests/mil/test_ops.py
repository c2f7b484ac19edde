"""Every operation gives what was worked out by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macai.mil.call import make_call
from macai.mil.ops import OPS
from macai.mil.program import Operation
from macai.mil.registry import op
from macai.mil.types import DictionaryType
from macai.mil.values import Value
from macai.mil.weights import Constant, WeightCache
from tests.mil.op_cases import CASES, ELSEWHERE


def value(given: Any) -> Value:
    """Make a constant: Python floats are float32, ints int32."""
    if isinstance(given, list | float | int) and not isinstance(given, bool):
        array = np.array(given)
        narrow = {"f": np.float32, "i": np.int32}.get(array.dtype.kind)
        given = array.astype(narrow) if narrow else array
    return Value(DictionaryType(), lambda: given if isinstance(given, str) else np.asarray(given))


def evaluate(name: str, **inputs: Any) -> tuple[np.ndarray, ...]:
    """Call an operation as a plan does."""
    arguments = {
        key: tuple(map(value, given)) if isinstance(given, tuple) else (value(given),)
        for key, given in inputs.items()
    }
    operation = Operation(name, name, arguments, {})
    cache = WeightCache(1 << 20)
    call = make_call(operation, OPS[name], lambda v: Constant(v.read, cache), name)
    with np.errstate(all="ignore"):
        return tuple(map(np.asarray, call.results(call.arguments(None))))


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_was_worked_out_by_hand(name):
    for inputs, expected in CASES[name]:
        results = evaluate(name, **inputs)
        wanted = expected if isinstance(expected, tuple) else (expected,)
        assert len(results) == len(wanted)
        for result, want in zip(results, map(np.array, wanted), strict=True):
            assert result.shape == want.shape, inputs
            assert (result.dtype == bool) == (want.dtype == bool), inputs
            np.testing.assert_allclose(result, want, rtol=2e-6, atol=1e-6, err_msg=str(inputs))


def test_every_operation_has_a_case():
    assert set(OPS) == set(CASES) | ELSEWHERE
    assert not set(CASES) & ELSEWHERE


def test_an_operation_is_registered_once():
    with pytest.raises(ValueError, match="'relu' is registered twice"):
        op("relu")(lambda: None)


@given(st.data())
def test_slices_are_pythons(data):
    size = data.draw(st.integers(1, 6))
    begin, end = (data.draw(st.integers(-size, size)) for _ in range(2))
    stride = data.draw(st.sampled_from([-2, -1, 1, 2, 3]))
    no_begin, no_end = data.draw(st.booleans()), data.draw(st.booleans())
    (result,) = evaluate(
        "slice_by_index", x=list(range(size)), begin=[begin], end=[end], stride=[stride],
        begin_mask=[no_begin], end_mask=[no_end],
    )  # fmt: skip
    expected = list(range(size))[None if no_begin else begin : None if no_end else end : stride]
    assert result.tolist() == expected


@given(st.data())
def test_what_a_slice_update_writes_is_what_a_slice_reads_then(data):
    sizes = [data.draw(st.integers(1, 4)) for _ in range(2)]
    begin = [data.draw(st.integers(0, n - 1)) for n in sizes]
    end = [data.draw(st.integers(b + 1, n)) for b, n in zip(begin, sizes, strict=True)]
    x = np.zeros(sizes, np.float32)
    update = 1 + np.arange(np.prod([e - b for b, e in zip(begin, end, strict=True)]))
    update = update.reshape([e - b for b, e in zip(begin, end, strict=True)]).astype(np.float32)
    (result,) = evaluate("slice_update", x=x, update=update, begin=begin, end=end)
    (read,) = evaluate("slice_by_index", x=result, begin=begin, end=end)
    assert read.tolist() == update.tolist()
    assert result.sum() == update.sum()
    assert not x.any()


@given(st.data())
def test_broadcasting_is_tiling(data):
    sizes = [data.draw(st.integers(1, 4)) for _ in range(data.draw(st.integers(1, 4)))]
    x = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    kept = [data.draw(st.booleans()) for _ in sizes]
    shape = [n if keep else 1 for n, keep in zip(sizes, kept, strict=True)]
    y = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    reps = [1 if keep else n for n, keep in zip(sizes, kept, strict=True)]
    (tiled,) = evaluate("tile", x=y, reps=reps)
    (broadcast,) = evaluate("sub", x=x, y=y)
    assert np.array_equal(broadcast, evaluate("sub", x=x, y=tiled)[0])


LABELS = st.text("abcd", min_size=1, max_size=3).filter(lambda t: len(set(t)) == len(t))


@settings(max_examples=40)
@given(LABELS, LABELS, LABELS, st.integers(0, 1 << 32))
def test_an_einsum_is_the_sum_it_stands_for(left, right, target, seed):
    rng = np.random.default_rng(seed)
    sizes = dict(zip("abcd", rng.integers(1, 4, 4).tolist(), strict=True))
    target = "".join(c for c in target if c in left + right)
    x, y = (rng.integers(-3, 4, [sizes[c] for c in p]).astype(np.float32) for p in (left, right))
    (result,) = evaluate("einsum", values=(x, y), equation=f"{left},{right}->{target}")
    expected = np.zeros([sizes[c] for c in target])
    for index in np.ndindex(*[n if c in left + right else 1 for c, n in sizes.items()]):
        at = dict(zip(sizes, index, strict=True))
        product = x[tuple(at[c] for c in left)] * y[tuple(at[c] for c in right)]
        expected[tuple(at[c] for c in target)] += product
    assert np.allclose(result, expected)
