"""How many bits each weight gets, when all together may take so many."""

from collections.abc import Mapping

import numpy as np

from macai.errors import UsageError

# Sums of bits told apart: beyond it the sums of a bucket count as one, its best is kept.
_BUCKETS = 1 << 14


def choose_bits(
    errors: Mapping[str, Mapping[float, float]],
    sizes: Mapping[str, int],
    target_bits_per_weight: float,
) -> dict[str, float]:
    """Return the bits of each weight, for the least sum of errors.

    The best there is, while no more than 16,384 sums of bits are left that are worth looking at;
    with more it is as near to it as 1/16,384 of the target.

    Args:
        errors: By path and bits per weight, what it adds to the loss.
        sizes: The number of elements by path.
        target_bits_per_weight: The mean that must not be exceeded.

    Raises:
        UsageError: all at their fewest bits take more.
    """
    limit = target_bits_per_weight * sum(sizes[path] for path in errors) * (1 + 1e-12)
    fewest = {path: min(options) * sizes[path] for path, options in errors.items()}
    rest = sum(fewest.values())
    if rest > limit:
        least = rest / sum(sizes[path] for path in errors)
        raise UsageError(
            f"{target_bits_per_weight:g} bits per weight are fewer than these weights can have",
            hint=f"ask for {least:.3g} or more",
        )
    totals, losses = np.zeros(1), np.zeros(1)
    steps: list[tuple[str, list[float], np.ndarray, np.ndarray]] = []
    for path, options in errors.items():
        rest -= fewest[path]
        bits = sorted(options)
        added = totals[:, None] + np.array(bits) * sizes[path]
        worse = losses[:, None] + np.array([options[b] for b in bits])
        kept = _frontier(added.reshape(-1), worse.reshape(-1), limit - rest)
        steps.append((path, bits, kept // len(bits), kept % len(bits)))
        totals, losses = added.reshape(-1)[kept], worse.reshape(-1)[kept]
    chosen, place = {}, int(np.argmin(losses))
    for path, bits, origin, option in reversed(steps):
        chosen[path] = bits[option[place]]
        place = int(origin[place])
    return {path: chosen[path] for path in errors}


def _frontier(totals: np.ndarray, losses: np.ndarray, limit: float) -> np.ndarray:
    """Return the places of sums that no smaller sum with a smaller loss beats, ascending."""
    order = np.lexsort((losses, totals))
    order = order[totals[order] <= limit]
    before = np.minimum.accumulate(losses[order])
    better = np.concatenate([[True], losses[order][1:] < before[:-1]])
    kept = order[better]
    if len(kept) <= _BUCKETS:
        return kept
    bucket = ((totals[kept] - totals[kept[0]]) * (_BUCKETS / (limit - totals[kept[0]]))).astype(int)
    last = np.concatenate([bucket[1:] != bucket[:-1], [True]])  # losses fall along the frontier
    last[0] = True
    return kept[last]
