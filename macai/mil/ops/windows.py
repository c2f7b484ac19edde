"""Where the windows of a convolution or a pool lie."""

from macai.mil.registry import Ints

Pads = list[tuple[int, int]]
"""(before, after) for each spatial axis."""


def pads_of(pad_type: str, pad: Ints | None, sizes: Ints, spans: Ints, strides: Ints) -> Pads:
    """Return the padding of each spatial axis; `spans` are the windows' sizes, dilated."""
    n = len(sizes)
    if not len(spans) == len(strides) == n:
        raise ValueError(f"windows of {n}, {len(spans)} and {len(strides)} axes")
    if min(strides, default=1) < 1 or min(spans, default=1) < 1:
        raise ValueError(f"windows of {list(spans)} with strides {list(strides)}")
    if pad_type == "valid":
        return [(0, 0)] * n
    if pad_type == "custom":
        if pad is None or len(pad) != 2 * n or min(pad, default=0) < 0:
            raise ValueError(f"custom padding {pad} for {n} axes")
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"there is no padding {pad_type!r}")
    pairs = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + span - size)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if pad_type == "same" else (more, less))
    return pairs


def spans_of(kernel: Ints, dilations: Ints) -> Ints:
    """Return how far the windows of a dilated kernel reach."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
