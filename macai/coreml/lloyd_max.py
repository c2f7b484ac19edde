"""Where the boundaries of a fine table settle: by Newton's method, in microseconds a boundary.

In the best table each boundary is midway between the means of the intervals beside it (Lloyd, 1982;
Max, 1960). A mean moves with its interval's ends by the density there, so that Newton's matrix has
three diagonals. What it ends at is near the best table, but where values are few it is chance which
side they are on: palettize.py goes on from there.
"""

import numpy as np

_CELLS = 2048  # of equal weight, and as many of equal width, from which the density is estimated
_ROUNDS = 20
_ROOM = 0.45  # of the way to its neighbour that a boundary may go at once
_TOO_SMALL = 0.02  # a step of less goes Lloyd's way: to the middle of the means


def settled(values: np.ndarray, weight: np.ndarray, moment: np.ndarray, k: int) -> np.ndarray:
    """Return where each of k intervals begins, and at last the number of values: int [k + 1].

    Args:
        values: [n] in ascending order.
        weight: Running sums of their weights from 0, [n + 1].
        moment: Running sums of weight times value, [n + 1].
        k: How many intervals.
    """
    n = len(values)
    edges = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, values[-1:]])
    places = _begun(values, edges, weight, k)
    ends, best, most = edges[places], places, -np.inf
    for _ in range(_ROUNDS):
        own = np.maximum(np.diff(weight[places]), 1e-300)
        part = np.diff(moment[places])
        if (gain := float((part * part / own).sum())) > most:
            best, most = places, gain
        moved = _moved(ends, edges, weight, own, part / own)
        if moved is None:
            break
        ends = moved
        places = np.concatenate([[0], np.searchsorted(values, ends[1:-1]), [n]])
    return best


def _begun(values: np.ndarray, edges: np.ndarray, weight: np.ndarray, k: int) -> np.ndarray:
    """As many per unit as the cube root of the density (Panter and Dite, 1951)."""
    n = len(values)
    alike = np.searchsorted(weight, np.linspace(0, weight[-1], _CELLS + 1))
    wide = np.searchsorted(values, np.linspace(values[0], values[-1], _CELLS + 1))
    cells = np.unique(np.concatenate([alike[1:-1], wide[1:-1], [0, n]]))
    widths = np.maximum(np.diff(edges[cells]), 1e-12)
    share = np.cumsum(np.cbrt(np.diff(weight[cells]) * widths**2))
    share = np.concatenate([[0.0], share])
    places = np.rint(np.interp(np.linspace(0, share[-1], k + 1), share, cells)).astype(np.int64)
    places[0], places[-1] = 0, n
    return np.maximum.accumulate(places)


def _moved(
    ends: np.ndarray, edges: np.ndarray, weight: np.ndarray, own: np.ndarray, means: np.ndarray
) -> np.ndarray | None:
    """Return the ends of the intervals after a step; None where there is none to take."""
    x, left, right = ends[1:-1], means[:-1], means[1:]
    gaps = np.minimum(np.diff(ends)[1:], np.diff(ends)[:-1])
    near = np.maximum(gaps / 4, 1e-300)
    density = (np.interp(x + near, edges, weight) - np.interp(x - near, edges, weight)) / (2 * near)
    before, after = density * (x - left) / own[:-1], density * (right - x) / own[1:]
    matrix = np.diag(1 - (before + after) / 2)
    matrix -= np.diag(after[:-1] / 2, -1) + np.diag(before[1:] / 2, 1)
    off = (left + right) / 2 - x
    try:
        step = np.linalg.solve(matrix, off)
    except np.linalg.LinAlgError:
        return None
    length = min(1.0, float((_ROOM * gaps / np.maximum(np.abs(step), 1e-300)).min()))
    if not np.isfinite(step).all() or length < _TOO_SMALL:
        step, length = off, 1.0
    moved = np.concatenate([ends[:1], x + length * step, ends[-1:]])
    return np.maximum.accumulate(moved)
