import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macai.coreml.allocate import choose_bits
from macai.errors import UsageError


def best_of_all(errors, sizes, target):
    paths, best = list(errors), float("inf")
    for bits in itertools.product(*(errors[p] for p in paths)):
        total = sum(b * sizes[p] for b, p in zip(bits, paths, strict=True))
        if total <= target * sum(sizes.values()) + 1e-9:
            best = min(best, sum(errors[p][b] for b, p in zip(bits, paths, strict=True)))
    return best


@given(
    st.lists(
        st.tuples(
            st.integers(1, 50),
            st.dictionaries(st.sampled_from([2, 3, 4, 4.5, 6, 8]), st.floats(0, 10), min_size=1),
        ),
        min_size=1,
        max_size=5,
    ),
    st.floats(2, 8),
)
@settings(max_examples=200, deadline=None)
def test_no_other_choice_is_better(weights, target):
    errors = {str(n): options for n, (_, options) in enumerate(weights)}
    sizes = {str(n): size for n, (size, _) in enumerate(weights)}
    least = best_of_all(errors, sizes, target)
    if least == float("inf"):
        with pytest.raises(UsageError, match="fewer than these weights can have"):
            choose_bits(errors, sizes, target)
        return
    chosen = choose_bits(errors, sizes, target)
    total = sum(chosen[p] * sizes[p] for p in errors)
    assert total <= target * sum(sizes.values()) * (1 + 1e-9)
    assert sum(errors[p][chosen[p]] for p in errors) == pytest.approx(least)


def test_many_weights_come_within_the_target_and_near_the_bound():
    rng = np.random.default_rng(0)
    bits = np.array([2.1, 3.07, 4.03, 6.11, 8.02])
    sizes = {str(n): int(s) for n, s in enumerate(rng.integers(1000, 5_000_000, 200))}
    scale = {p: float(np.exp(rng.normal()) * sizes[p]) for p in sizes}
    errors = {p: {float(b): scale[p] * 4**-b for b in bits} for p in sizes}
    chosen = choose_bits(errors, sizes, 4.5)
    weights = sum(sizes.values())
    mean = sum(chosen[p] * sizes[p] for p in sizes) / weights
    assert 4.49 < mean <= 4.5
    # No choice within the target is better than the Lagrangian's bound, for any price of a bit.
    loss = sum(errors[p][chosen[p]] for p in sizes)
    bound = max(
        sum(min(e + price * b * sizes[p] for b, e in errors[p].items()) for p in sizes)
        - price * 4.5 * weights
        for price in np.exp(np.linspace(-12, 0, 400))
    )
    assert loss < bound * 1.002
