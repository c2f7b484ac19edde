"""The same values in another arrangement."""

import math

import numpy as np

from macai.mil.ops.size import allowed
from macai.mil.registry import Array, Arrays, Bools, Ints, op


@op("reshape")
def reshape(x: Array, shape: Ints) -> Array:
    """0 keeps a size, -1 stands for whatever is left."""
    sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return x.reshape(sizes)


@op("reshape_like")
def reshape_like(
    x: Array, ref_tensors: Arrays, begins: Ints, ends: Ints, end_masks: Bools
) -> Array:
    """The sizes are those of each reference from its begin to its end."""
    sizes: list[int] = []
    for ref, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += ref.shape[begin : None if to_end else end]
    return x.reshape(sizes)


@op("flatten2d")
def flatten2d(x: Array, axis: int = 1) -> Array:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("transpose")
def transpose(x: Array, perm: Ints) -> Array:
    return x.transpose(perm)


@op("expand_dims")
def expand_dims(x: Array, axes: Ints) -> Array:
    return np.expand_dims(x, axes)


@op("squeeze")
def squeeze(x: Array, axes: Ints | None = None) -> Array:
    return np.squeeze(x, axes)


@op("concat")
def concat(values: Arrays, axis: int, interleave: bool = False) -> Array:
    """Interleaved, the first slices of all come first, then the second ones."""
    allowed((sum(value.size for value in values),))
    if not interleave:
        return np.concatenate(values, axis)
    axis %= values[0].ndim
    stacked = np.stack(values, axis + 1)
    shape = list(values[0].shape)
    shape[axis] *= len(values)
    return stacked.reshape(shape)


@op("stack")
def stack(values: Arrays, axis: int) -> Array:
    allowed((sum(value.size for value in values),))
    return np.stack(values, axis)


@op("split")
def split(
    x: Array, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Array, ...]:
    if split_sizes is None:
        if num_splits is None or num_splits < 1 or x.shape[axis] % num_splits:
            raise ValueError(f"axis {axis} of {list(x.shape)} in {num_splits} parts")
        return tuple(np.split(x, num_splits, axis))
    if sum(split_sizes) != x.shape[axis] or min(split_sizes) < 0:
        raise ValueError(f"axis {axis} of {list(x.shape)} in parts of {list(split_sizes)}")
    return tuple(np.split(x, np.cumsum(split_sizes)[:-1].tolist(), axis))


@op("tile")
def tile(x: Array, reps: Ints) -> Array:
    if len(reps) != x.ndim:
        raise ValueError(f"{len(reps)} repetitions of a tensor of rank {x.ndim}")
    allowed(size * n for size, n in zip(x.shape, reps, strict=True))
    return np.tile(x, reps)


@op("reverse")
def reverse(x: Array, axes: Ints | None = None) -> Array:
    return np.flip(x, axes)


@op("reverse_sequence")
def reverse_sequence(x: Array, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Array:
    """Reverse the first `lengths[b]` elements along `seq_axis` of each b along `batch_axis`."""
    moved = np.moveaxis(x, (batch_axis, seq_axis), (0, 1)).copy()
    for row, length in zip(moved, lengths, strict=True):
        row[:length] = row[:length][::-1].copy()
    return np.moveaxis(moved, (0, 1), (batch_axis, seq_axis))


@op("shape")
def shape(x: Array) -> Array:
    return np.array(x.shape, np.int32)


@op("depth_to_space")
def depth_to_space(x: Array, block_size: int) -> Array:
    """[B, b·b·C, H, W] → [B, C, H·b, W·b], the block's position in the slow part of the channel."""
    B, C, H, W = x.shape
    b = block_size
    y = x.reshape(B, b, b, C // (b * b), H, W).transpose(0, 3, 4, 1, 5, 2)
    return y.reshape(B, C // (b * b), H * b, W * b)


@op("space_to_depth")
def space_to_depth(x: Array, block_size: int) -> Array:
    """The inverse of `depth_to_space`."""
    B, C, H, W = x.shape
    b = block_size
    y = x.reshape(B, C, H // b, b, W // b, b).transpose(0, 3, 5, 1, 2, 4)
    return y.reshape(B, C * b * b, H // b, W // b)


@op("pixel_shuffle")
def pixel_shuffle(x: Array, upscale_factor: int) -> Array:
    """[B, C·r·r, H, W] → [B, C, H·r, W·r], the position in the fast part of the channel."""
    B, C, H, W = x.shape
    r = upscale_factor
    y = x.reshape(B, C // (r * r), r, r, H, W).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(B, C // (r * r), H * r, W * r)


@op("pixel_unshuffle")
def pixel_unshuffle(x: Array, downscale_factor: int) -> Array:
    """The inverse of `pixel_shuffle`."""
    B, C, H, W = x.shape
    r = downscale_factor
    y = x.reshape(B, C, H // r, r, W // r, r).transpose(0, 1, 3, 5, 2, 4)
    return y.reshape(B, C * r * r, H // r, W // r)


@op("space_to_batch")
def space_to_batch(x: Array, block_shape: Ints, paddings: Ints) -> Array:
    """[B, C, H, W] → [B·bh·bw, C, H'/bh, W'/bw] after padding H and W with zeros."""
    bh, bw = block_shape
    top, bottom, left, right = paddings
    B, C, H, W = x.shape
    H, W = H + top + bottom, W + left + right
    allowed((B, C, H, W))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    y = padded.reshape(B, C, H // bh, bh, W // bw, bw).transpose(3, 5, 0, 1, 2, 4)
    return y.reshape(B * bh * bw, C, H // bh, W // bw)


@op("batch_to_space")
def batch_to_space(x: Array, block_shape: Ints, crops: Ints) -> Array:
    """The inverse of `space_to_batch`, cropping instead of padding."""
    bh, bw = block_shape
    top, bottom, left, right = crops
    B, C, H, W = x.shape
    y = x.reshape(bh, bw, B // (bh * bw), C, H, W).transpose(2, 3, 4, 0, 5, 1)
    y = y.reshape(B // (bh * bw), C, H * bh, W * bw)
    return y[:, :, top : H * bh - bottom, left : W * bw - right]


@op("sliding_windows")
def sliding_windows(x: Array, axis: int, size: int, stride: int = 1) -> Array:
    """Insert an axis of `size` after `axis`, which counts the windows then."""
    axis %= x.ndim
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    index = (slice(None),) * axis + (slice(None, None, stride),)
    allowed(windows[index].shape)
    return np.moveaxis(windows[index], -1, axis + 1)
