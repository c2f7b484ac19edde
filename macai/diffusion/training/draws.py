"""Random numbers as functions of what they are for: no state to save, none to disturb."""

import hashlib

import numpy as np


def generator(*what: int | str) -> np.random.Generator:
    """Return the stream of random numbers that belongs to `what`, the same at any time.

    Args:
        what: For instance the seed, "noise", the step and the picture's number in it.
    """
    key = hashlib.sha256(repr(what).encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def order(count: int, *what: int | str) -> list[int]:
    """Return the numbers below `count` in the order that belongs to `what`."""
    return [int(i) for i in generator("order", *what).permutation(count)]
