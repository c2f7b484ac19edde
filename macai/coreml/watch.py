"""See, or change, what layers of a model are given and give while it runs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

Seen = Callable[[nn.Module, mx.array, mx.array], mx.array | None]


@contextlib.contextmanager
def watching(places: Sequence[tuple[type[nn.Module], str]], seen: Seen) -> Iterator[None]:
    """Call `seen` with layer, input and result of each call of a method; not for several threads.

    Args:
        places: Classes and the names of their methods, which take one array.
        seen: What is told; what it returns takes the place of the result, unless that is None.
    """
    originals = [getattr(owner, name) for owner, name in places]

    def watched(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def call(self: nn.Module, x: mx.array) -> mx.array:
            result = original(self, x)
            other = seen(self, x, result)
            return result if other is None else other

        return call

    try:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, watched(original))
        yield
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)
