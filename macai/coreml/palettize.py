"""The best table of 2^bits values for a set of weights: k-means in one dimension, in numpy alone.

In one dimension a cluster is an interval of the sorted values, so that a clustering is k - 1
boundaries, and what an interval costs follows from running sums: it is never looked at again how
many weights there are. float16 weights have at most 63,488 values.

The search: boundaries begin where the theory of fine quantisers puts them (Panter and Dite, 1951:
as many per unit as the cube root of the density), those of fine tables where they settle from
there: see lloyd_max.py. Then each may move by a power of two of places at once, and dynamic
programming finds the best combination of all their moves, until none is better. No test has found a
table of 16 values that it missed, but it is no proof of the optimum; errors of tables of 64 and
256 values were 0.1 % above the least at most.
"""

from dataclasses import dataclass

import numpy as np

from macai.coreml.lloyd_max import settled
from macai.coreml.stored import Palette

# Comparing with every boundary is faster than searching where there are few.
_COMPARED = 16
_CELLS = 512  # of equal weight, from which the density is estimated
# Powers of the width of a cell that say how much of the table it is given: theory's, and one that
# gives the tails less.
_STARTS = (2 / 3, 1 / 2)
# The most steps to each side at once, and the most rounds.
_REACH = 12
_FEW = 16  # entries of a table that begins at theory's places, and better at two guesses
_ROUNDS = 200
_TURNS = 3  # of table and scales of rows
_CHUNK = 1 << 22  # elements of one dynamic programming step


def palettize(
    weight: np.ndarray,
    *,
    bits: int,
    group: int | None = None,
    importance: np.ndarray | None = None,
) -> Palette:
    """Return the float16 tables with the least squared error, and the nearest entry of each weight.

    Args:
        weight: float [rows, columns], finite, within float16.
        bits: 1, 2, 3, 4, 6 or 8.
        group: How many rows share a table; it divides the rows. All of them if None.
        importance: How much an error of a column counts, float [columns].
    """
    half = np.ascontiguousarray(weight, np.float16)
    k = 2**bits
    if group is None:
        tables = _table_of_all(half, k, importance)
    else:
        tables = _tables_of_groups(half.reshape(-1, group * half.shape[1]), k, importance)
    tables = np.sort(tables.astype(np.float16).astype(np.float32), axis=1)
    if group is None:
        indices = _nearest_codes(tables)[half.view(np.uint16)]
    else:
        indices = nearest(half.astype(np.float32).reshape(len(tables), -1), tables)
    return Palette(indices.reshape(weight.shape), bits, tables[:, None])


def palettize_rows(
    weight: np.ndarray, *, bits: int, importance: np.ndarray | None = None
) -> Palette:
    """Return one table for all rows with a scale for each, and the nearest entry of each weight.

    Table and scales are fitted in turn. Since one moves the other, the table is where Newton's
    method settles, without the search.

    Args:
        weight: float [rows, columns], finite, within float16.
        bits: As above.
        importance: How much an error of a column counts, float [columns].
    """
    counts = np.ones(weight.shape[1]) if importance is None else importance / importance.mean()
    counts = counts.astype(np.float32)
    scale, k = np.sqrt(np.square(weight) @ counts / len(counts)), 2**bits
    for _ in range(_TURNS):
        scale = np.where(scale == 0, 1, scale).astype(np.float16).astype(np.float32)
        half = (weight / scale[:, None]).astype(np.float16)
        values, counted = _counted(half, np.square(scale)[:, None] * counts)
        sums = Sums.of(values, counted)
        if values.shape[1] > 2 * k:
            places = settled(values[0], sums.weight[0], sums.moment[0], k)[None]
        else:
            places = boundaries(sums, values, k)
        table = np.sort(means(sums, places).astype(np.float16).astype(np.float32))
        indices = _nearest_codes(table)[half.view(np.uint16)]
        entries = table[0, indices]
        square, product = np.square(entries) @ counts, (weight * entries) @ counts
        scale = np.divide(product, square, out=scale, where=square > 0)
    return Palette(indices, bits, table[:, None], scale[:, None])


def nearest(values: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Return the index of the nearest entry of each set's ascending table, uint8 [G, n]."""
    middles = (tables[:, 1:] + tables[:, :-1]) / 2
    if tables.shape[1] <= _COMPARED:
        indices = np.zeros(values.shape, np.uint8)
        for place in range(middles.shape[1]):
            indices += values > middles[:, place, None]
        return indices
    return np.stack(
        [np.searchsorted(m, v).astype(np.uint8) for m, v in zip(middles, values, strict=True)]
    )


def _nearest_codes(tables: np.ndarray) -> np.ndarray:
    """Return the nearest entry of one table for each float16 there is, by its bits: uint8 [65536].

    What is no number has the last; no weight is.
    """
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return nearest(every[None], tables)[0]


def _table_of_all(half: np.ndarray, k: int, importance: np.ndarray | None) -> np.ndarray:
    return _tables(*_counted(half, importance), k)


def _counted(half: np.ndarray, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values, ascending, and what each counts in all: float64 [1, n]."""
    counted = None
    if importance is not None:
        counted = np.broadcast_to(importance, half.shape).reshape(-1)
    by_bits = np.bincount(half.view(np.uint16).reshape(-1), counted, minlength=1 << 16)
    counts = np.empty_like(by_bits)
    counts[_ordered(np.arange(1 << 16, dtype=np.uint16).view(np.float16))] = by_bits
    there = np.flatnonzero(counts)
    values = _unordered(there.astype(np.uint16)).astype(np.float64)[None]
    return values, counts[there].astype(np.float64)[None]


def _tables_of_groups(half: np.ndarray, k: int, importance: np.ndarray | None) -> np.ndarray:
    codes = _ordered(half)
    if importance is None:
        return _tables(
            _unordered(np.sort(codes, axis=1, kind="stable")).astype(np.float64), None, k
        )
    order = np.argsort(codes, axis=1, kind="stable")  # by radix, as the sort of 16 bits is
    values = _unordered(np.take_along_axis(codes, order, 1)).astype(np.float64)
    return _tables(values, importance.astype(np.float64)[order % len(importance)], k)


def _tables(values: np.ndarray, weights: np.ndarray | None, k: int) -> np.ndarray:
    sums = Sums.of(values, weights)
    return means(sums, boundaries(sums, values, k))


def _ordered(half: np.ndarray) -> np.ndarray:
    """Return uint16 that ascend as the float16 do."""
    bits = np.ascontiguousarray(half).view(np.uint16)
    return np.where(bits >> 15, ~bits, bits | np.uint16(0x8000))


def _unordered(codes: np.ndarray) -> np.ndarray:
    bits = np.where(codes >> 15, codes & np.uint16(0x7FFF), ~codes)
    return bits.astype(np.uint16).view(np.float16)


@dataclass(frozen=True, slots=True)
class Sums:
    """Running sums over sorted values of G sets, from 0: float64 [G, n + 1].

    Attributes:
        weight: Of what is summed up: how often a value occurs, or how much it counts.
        moment: Of weight times value.
    """

    weight: np.ndarray
    moment: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray | None = None) -> "Sums":
        """Return the sums of values [G, n] in ascending order; each counts once by default."""
        counts = np.ones_like(values, np.float64) if weights is None else weights
        return cls(_running(counts), _running(counts * values))

    def part(self, begin: int, end: int) -> "Sums":
        """Return the sums of sets begin to end."""
        return Sums(self.weight[begin:end], self.moment[begin:end])


def _running(x: np.ndarray) -> np.ndarray:
    sums = np.zeros((x.shape[0], x.shape[1] + 1))
    np.cumsum(x, axis=1, dtype=np.float64, out=sums[:, 1:])
    return sums


def boundaries(sums: Sums, values: np.ndarray, k: int) -> np.ndarray:
    """Return where each of k intervals begins, and at last the number of values: int [G, k + 1].

    Args:
        sums: Of the values.
        values: [G, n], ascending.
        k: How many intervals; some are empty where there are fewer values.
    """
    scales = _scales(values.shape[1], k)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for places in _starts(sums, values, k):
        gains = np.empty(len(places))
        step = max(1, _CHUNK // max(map(len, scales)) ** 2)
        for begin in range(0, len(places), step):
            rows = slice(begin, begin + step)
            gains[rows] = _improve(sums.part(begin, begin + step), places[rows], scales)
        found.append((gains, places))
    best = np.argmax([gains for gains, _ in found], axis=0)
    return np.choose(best[:, None], [places for _, places in found])


def means(sums: Sums, places: np.ndarray) -> np.ndarray:
    """Return the mean of each interval, float64 [G, k]; of an empty one its neighbour's."""
    weight = np.diff(np.take_along_axis(sums.weight, places, 1))
    moment = np.diff(np.take_along_axis(sums.moment, places, 1))
    # Boundaries ascend, so that the last interval with something in it stands for those after it.
    index = np.where(weight > 0, np.arange(weight.shape[1]), 0)
    filled = np.maximum.accumulate(index, axis=1)
    first = np.argmax(weight > 0, axis=1)[:, None]
    filled = np.maximum(filled, first)
    ratio = np.divide(moment, weight, out=np.zeros_like(moment), where=weight > 0)
    return np.take_along_axis(ratio, filled, 1)


def _starts(sums: Sums, values: np.ndarray, k: int) -> list[np.ndarray]:
    """Return where the search begins: int [G, k + 1] each."""
    if k <= _FEW or values.shape[1] <= 2 * k:
        return [_companded(sums, values, k, power) for power in _STARTS]
    rows = zip(values.astype(np.float64), sums.weight, sums.moment, strict=True)
    return [np.stack([settled(*row, k) for row in rows])]


def _companded(sums: Sums, values: np.ndarray, k: int, power: float) -> np.ndarray:
    sets, n = values.shape
    cells = min(_CELLS, n)
    edges = np.empty((sets, cells + 1), np.int64)
    for row in range(sets):
        total = sums.weight[row, -1]
        edges[row] = np.searchsorted(sums.weight[row], np.linspace(0, total, cells + 1))
    edges[:, 0], edges[:, -1] = 0, n
    at = np.take_along_axis(values, np.minimum(edges, n - 1), 1).astype(np.float64)
    share = np.cumsum(np.maximum(np.diff(at), 1e-12) ** power, axis=1)
    share = np.concatenate([np.zeros((sets, 1)), share], axis=1)
    places = np.empty((sets, k + 1), np.int64)
    for row in range(sets):
        wanted = np.linspace(0, share[row, -1], k + 1)
        places[row] = np.rint(np.interp(wanted, share[row], edges[row]))
    places[:, 0], places[:, -1] = 0, n
    return np.maximum.accumulate(places, axis=1)


def _scales(n: int, k: int) -> list[np.ndarray]:
    """Return sets of steps: powers of two, then multiples of a stride.

    For tables of up to 16 powers of two alone end at the best table nearly always, so that two
    or three strides are enough to make sure; larger ones begin so near that fine strides are.
    """
    width = max(1, n // k)
    powers = 2 ** np.arange(max(1, int(np.log2(max(2, 4 * width)))))
    strides, coarse = [1, 4] if k > _FEW else [], max(1, width // _REACH)
    while k <= _FEW and coarse > 0:
        strides.append(coarse)
        coarse //= 8
    reach = np.arange(-_REACH, _REACH + 1)
    return [np.concatenate([-powers[::-1], [0], powers]), *(stride * reach for stride in strides)]


def _improve(sums: Sums, places: np.ndarray, scales: list[np.ndarray]) -> np.ndarray:
    """Move boundaries in place until none is better; return what _best_moves does of the last."""
    best = np.full(len(places), -np.inf)
    idle = np.zeros(len(places), int)
    for turn in range(_ROUNDS):
        active = np.flatnonzero(idle < len(scales))
        if not len(active):
            break
        moved, gain = _best_moves(sums, active, places[active], scales[turn % len(scales)])
        better = gain > best[active] * (1 + 1e-12) + 1e-300
        places[active[better]] = moved[better]
        best[active[better]] = gain[better]
        idle[active] = np.where(better, 0, idle[active] + 1)
    return best


def _best_moves(
    sums: Sums, rows: np.ndarray, places: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best boundaries within reach, and the sum of moment^2 / weight over intervals.

    `rows` says which sets `places` are of.
    """
    n = sums.weight.shape[1] - 1
    choices = _choices(places, offsets, n)
    sets, count, width = choices.shape
    flat = choices.reshape(sets, -1)
    weight = sums.weight[rows[:, None], flat].reshape(choices.shape)
    moment = sums.moment[rows[:, None], flat].reshape(choices.shape)
    gain = _gain(weight[:, 0], moment[:, 0])
    came_from = np.empty((count, sets, width), np.int16)
    for b in range(1, count):
        step = _gain(  # [G, C of b, C of b - 1]: numpy finds maxima fastest along the last axis
            weight[:, b, :, None] - weight[:, b - 1, None, :],
            moment[:, b, :, None] - moment[:, b - 1, None, :],
        )
        step += gain[:, None, :]
        best = step.argmax(axis=-1)
        came_from[b] = best
        gain = np.take_along_axis(step, best[..., None], -1)[..., 0]
    gain = gain + _gain(
        sums.weight[rows, -1:] - weight[:, -1], sums.moment[rows, -1:] - moment[:, -1]
    )
    chosen = gain.argmax(axis=1)
    total = gain[np.arange(sets), chosen]
    moved = places.copy()
    for b in range(count - 1, -1, -1):
        moved[:, b + 1] = choices[np.arange(sets), b, chosen]
        if b:
            chosen = came_from[b][np.arange(sets), chosen]
    return moved, total


def _choices(places: np.ndarray, offsets: np.ndarray, n: int) -> np.ndarray:
    """Return where each inner boundary may go, [G, k - 1, C].

    Beside steps of its own these are the places of its neighbours and halfway there: when many
    boundaries take their neighbour's, two intervals become one and another becomes two.
    """
    inner = places[:, 1:-1]
    near = np.pad(places, ((0, 0), (1, 1)), mode="edge")
    count = inner.shape[1]
    shifted = [near[:, 2 + d : 2 + d + count] for d in (-2, -1, 1, 2)]
    halfway = [(inner + shifted[1]) // 2, (inner + shifted[2]) // 2]
    choices = np.concatenate(
        [inner[:, :, None] + offsets, np.stack([*shifted, *halfway], axis=-1)], axis=-1
    )
    return np.clip(choices, 0, n)


def _gain(weight: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """moment^2 / weight; of an empty interval 0, of one that ends before it begins -inf."""
    gain = moment * moment
    np.divide(gain, weight, out=gain, where=weight > 0)
    np.copyto(gain, -np.inf, where=weight < 0)
    np.copyto(gain, 0.0, where=weight == 0)  # its moment may be a rounding
    return gain
