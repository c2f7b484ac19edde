"""Images resized and resampled, over the last two axes unless it says otherwise."""

import numpy as np

from macai.mil.ops.size import allowed
from macai.mil.registry import Array, Ints, op

HALF = 0.5


def positions(mode: str, n_in: float, n_out: int) -> Array:
    """Return where each output lies among the inputs, float64 [n_out], in 0 .. n_in - 1."""
    i = np.arange(n_out, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if n_out == 1:
            return np.full(1, (n_in - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0)
        at = i * (n_in - 1) / (n_out - 1)
    elif mode == "DEFAULT":
        at = i * n_in / n_out
    elif mode == "OFFSET_CORNERS":
        at = (i + HALF) * max(1, n_in - 1) / n_out
    elif mode == "UNALIGN_CORNERS":
        at = (i + HALF) * n_in / n_out - HALF
    else:
        raise ValueError(f"there is no sampling mode {mode!r}")
    return np.clip(at, 0, n_in - 1)


def _linear(x: Array, axis: int, at: Array) -> Array:
    """Interpolate along an axis."""
    low = np.floor(at).astype(np.intp)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    part = (at - low).astype(np.float32).reshape(shape)
    return np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part


def _resized(x: Array, sizes: Ints, mode: str) -> Array:
    """Bilinear for the last axes, one size for each."""
    allowed((*x.shape[: x.ndim - len(sizes)], *sizes))
    for axis, size in enumerate(sizes, start=x.ndim - len(sizes)):
        if size != x.shape[axis] or mode == "OFFSET_CORNERS":
            x = _linear(x, axis, positions(mode, x.shape[axis], size))
    return x


def _nearest(x: Array, sizes: Ints) -> Array:
    allowed((*x.shape[: x.ndim - len(sizes)], *sizes))
    for axis, size in enumerate(sizes, start=x.ndim - len(sizes)):
        x = np.take(x, np.arange(size) * x.shape[axis] // max(size, 1), axis)
    return x


def _scaled(x: Array, height: float, width: float) -> Ints:
    """Return the sizes after scaling, rounded down from a float32 product as converters do."""
    return tuple(
        int(np.floor(np.float32(n) * np.float32(s)))
        for n, s in zip(x.shape[-2:], (height, width), strict=True)
    )


@op("upsample_nearest_neighbor")
def upsample_nearest_neighbor(
    x: Array, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Array:
    return _nearest(x, _scaled(x, scale_factor_height, scale_factor_width))


@op("resize_nearest_neighbor")
def resize_nearest_neighbor(x: Array, target_size_height: int, target_size_width: int) -> Array:
    return _nearest(x, (target_size_height, target_size_width))


@op("upsample_bilinear")
def upsample_bilinear(
    x: Array,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Array:
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise ValueError("align_corners and half_pixel_centers together")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _resized(x, _scaled(x, scale_factor_height, scale_factor_width), mode)


@op("resize_bilinear")
def resize_bilinear(
    x: Array,
    target_size_height: int = 1,
    target_size_width: int = 1,
    sampling_mode: str = "DEFAULT",
) -> Array:
    return _resized(x, (target_size_height, target_size_width), sampling_mode)


@op("resize")
def resize(
    x: Array,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Array:
    """The last `resized_dims` sizes of shape are those of the result; 0 keeps x's."""
    if not 0 < resized_dims <= min(len(shape), x.ndim):
        raise ValueError(f"{resized_dims} of {list(shape)} for {list(x.shape)}")
    wanted, kept = shape[-resized_dims:], x.shape[-resized_dims:]
    sizes = tuple(w or k for w, k in zip(wanted, kept, strict=True))
    if interpolation_mode == "LINEAR":
        return _resized(x, sizes, sampling_mode).astype(x.dtype, copy=False)
    if interpolation_mode != "NEAREST_NEIGHBOR":
        raise ValueError(f"there is no interpolation mode {interpolation_mode!r}")
    if sampling_mode == "DEFAULT":
        return _nearest(x, sizes)
    for axis, size in enumerate(sizes, start=x.ndim - resized_dims):
        at = np.floor(positions(sampling_mode, x.shape[axis], size) + HALF).astype(np.intp)
        x = np.take(x, at, axis)
    return x


@op("resample")
def resample(
    x: Array,
    coordinates: Array,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Array:
    """[B, C, H, W] at [B, h, w, (x, y)] → [B, C, h, w]."""
    H, W = x.shape[-2:]
    allowed((*x.shape[:2], *coordinates.shape[1:3]))
    at = [
        _pixels(coordinates[..., i].astype(np.float64), n, coordinates_mode, align_corners)
        for i, n in ((1, H), (0, W))
    ]
    at = [_folded(a, n, padding_mode, align_corners) for a, n in zip(at, (H, W), strict=True)]
    if sampling_mode == "nearest":
        rows, columns = (np.round(a).astype(np.intp) for a in at)
        return _pixel(x, rows, columns, padding_value)
    if sampling_mode != "bilinear":
        raise ValueError(f"there is no sampling mode {sampling_mode!r}")
    low = [np.floor(a).astype(np.intp) for a in at]
    part = [(a - lo).astype(np.float32)[:, None] for a, lo in zip(at, low, strict=True)]
    result: Array = np.zeros((), np.float32)
    for down in (0, 1):
        for right in (0, 1):
            weight = (part[0] if down else 1 - part[0]) * (part[1] if right else 1 - part[1])
            result = result + weight * _pixel(x, low[0] + down, low[1] + right, padding_value)
    return result


@op("affine")
def affine(
    x: Array,
    transform_matrix: Array,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Array:
    """transform_matrix [B or 1, (a0, a1, a2, b0, b1, b2)]: x' = a0·x + a1·y + a2, y' likewise."""
    allowed((*x.shape[:2], output_height, output_width))
    axes = [_base(n, align_corners) for n in (output_height, output_width)]
    rows, columns = np.meshgrid(*axes, indexing="ij")
    points = np.stack([columns, rows, np.ones_like(rows)], -1)
    matrices = np.broadcast_to(transform_matrix, (x.shape[0], 6)).reshape(-1, 2, 3)
    at = np.einsum("hwk,bck->bhwc", points, matrices)
    return resample(
        x, at, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners
    )


def _base(n: int, align_corners: bool) -> Array:
    at = np.linspace(-1, 1, n)
    return at if align_corners else at * (n - 1) / n


def _pixels(at: Array, n: int, mode: str, align_corners: bool) -> Array:
    """Turn coordinates into pixel numbers, 0 the centre of the first."""
    if mode == "unnormalized":
        return at
    if mode == "normalized_minus_one_to_one":
        at = (at + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise ValueError(f"there is no coordinates mode {mode!r}")
    return at * (n - 1) if align_corners else at * n - HALF


def _folded(at: Array, n: int, mode: str, align_corners: bool) -> Array:
    """Bring coordinates outside the image back into it, but for the mode `constant`."""
    # Beyond this, indices would overflow; any padding is the same there.
    at = np.nan_to_num(np.clip(at, -1e9, 1e9))
    if mode == "constant":
        return at
    if mode == "border":
        return np.clip(at, 0, n - 1)
    if mode not in ("reflection", "symmetric"):
        raise ValueError(f"there is no padding mode {mode!r}")
    # Torch's reflection is around the edges of the outer pixels unless corners are aligned.
    low, high = (0.0, n - 1.0) if align_corners and mode == "reflection" else (-HALF, n - HALF)
    span = high - low
    if span == 0:
        return np.zeros_like(at)
    folded = np.abs(np.mod(at - low + span, 2 * span) - span) + low
    return np.clip(folded, 0, n - 1)


def _pixel(x: Array, rows: Array, columns: Array, padding_value: float) -> Array:
    """X [B, C, H, W], rows and columns [B, h, w] → [B, C, h, w]."""
    H, W = x.shape[-2:]
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    batch = np.arange(x.shape[0])[:, None, None]
    found = x[batch, :, np.clip(rows, 0, H - 1), np.clip(columns, 0, W - 1)]
    return np.where(inside[:, None], np.moveaxis(found, -1, 1), np.float32(padding_value))
