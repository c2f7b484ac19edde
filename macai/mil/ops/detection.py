"""Boxes: chosen, and cut out of images.

No other implementation was at hand to compare these with: they follow MIL's documentation.
"""

import numpy as np

from macai.mil.ops.image import positions
from macai.mil.ops.size import allowed
from macai.mil.registry import Array, op

NOT_A_BOX = -1


@op("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Array,
    scores: Array,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float = float("-inf"),
    per_class_suppression: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """Boxes [N, B, (x, y, width, height)] about their centres, scores [N, B, K].

    Returns:
        Of each of N the boxes, the scores and the indices of those chosen, best first, filled up
        with zeros, zeros and -1 to max_boxes, and their number, int32 [N].
    """
    N, _, K = scores.shape
    allowed((N, max_boxes, max(K, 4)))
    chosen = np.full((N, max_boxes), NOT_A_BOX, np.int32)
    counts = np.zeros(N, np.int32)
    for n in range(N):
        kept = _suppress(
            boxes[n], scores[n], iou_threshold, score_threshold, max_boxes, per_class_suppression
        )
        chosen[n, : len(kept)] = kept
        counts[n] = len(kept)
    is_box = (chosen >= 0)[..., None]
    rows = np.arange(N)[:, None]
    return (
        np.where(is_box, boxes[rows, chosen], np.float32(0)),
        np.where(is_box, scores[rows, chosen], np.float32(0)),
        chosen,
        counts,
    )


def _suppress(
    boxes: Array, scores: Array, iou: float, lowest: float, most: int, per_class: bool
) -> list[int]:
    best, classes = scores.max(-1), scores.argmax(-1)
    kept: list[int] = []
    for i in np.argsort(-best, kind="stable"):
        if len(kept) == most:
            break
        rivals = [k for k in kept if not per_class or classes[k] == classes[i]]
        if best[i] >= lowest and all(_overlap(boxes[i], boxes[k]) <= iou for k in rivals):
            kept.append(int(i))
    return kept


def _overlap(a: Array, b: Array) -> float:
    """Return the intersection of two boxes over their union."""
    low = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    shared = float(np.prod(np.maximum(high - low, 0)))
    union = float(np.prod(a[2:]) + np.prod(b[2:])) - shared
    return shared / union if union > 0 else 0.0


@op("crop_resize")
def crop_resize(
    x: Array,
    roi: Array | None = None,
    boxes: Array | None = None,
    box_indices: Array | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Array:
    """X [B, C, H, W]: `boxes` [N, 4] give [N, C, h, w], of the images `box_indices` (0, 1, ...).

    Before iOS 17: `roi` [N, 1, 4, 1, 1] gives [N, B, C, h, w], each box of every image, and
    [N, 1, 5, 1, 1], with the image's index first, [N, 1, C, h, w].
    """
    B, C, H, W = x.shape
    if boxes is None:
        if roi is None:
            raise ValueError("neither boxes nor roi")
        boxes = roi.reshape(roi.shape[0], roi.shape[2])
    images = _images(B, len(boxes), roi, box_indices)
    allowed((*images.shape, C, target_height, target_width))
    crops = []
    for box, of in zip(boxes[:, -4:].astype(np.float64), images, strict=True):
        top, left, bottom, right = _corners(box, box_coordinate_mode)
        rows, columns = (
            _line(low * f, high * f, n, sampling_mode)
            for low, high, n, f in (
                (top, bottom, target_height, (H - 1 if normalized_coordinates else 1)),
                (left, right, target_width, (W - 1 if normalized_coordinates else 1)),
            )
        )
        rows, columns = rows * spatial_scale, columns * spatial_scale
        crops.append(_sampled(x[of], rows, columns, pad_value))
    result = np.stack(crops)
    return result if roi is not None else result[:, 0]


def _images(n_images: int, n_boxes: int, roi: Array | None, box_indices: Array | None) -> Array:
    """Return which images each box is cut out of, [N, 1 or B]."""
    if roi is not None and roi.shape[2] == 5:
        return roi[:, :, 0, 0, 0].astype(np.intp)
    if roi is not None:
        return np.broadcast_to(np.arange(n_images), (n_boxes, n_images))
    return (np.arange(n_boxes) if box_indices is None else box_indices.astype(np.intp))[:, None]


def _corners(box: Array, mode: str) -> list[float]:
    """Return top, left, bottom, right."""
    shape, _, first = mode.removesuffix("_FIRST").rpartition("_")
    a, b = box[:2], box[2:]
    if shape == "CENTER_SIZE":
        a, b = a - b / 2, a + b / 2
    elif shape != "CORNERS" or first not in ("WIDTH", "HEIGHT"):
        raise ValueError(f"there is no box mode {mode!r}")
    if first == "WIDTH":
        a, b = a[::-1], b[::-1]
    return [*a.tolist(), *b.tolist()]


def _line(low: float, high: float, n: int, mode: str) -> Array:
    """Return n positions from low to high, spread as `resize_bilinear` spreads them."""
    span = high - low
    if span <= 0:
        return np.full(n, low)
    # The sampling modes are defined for any number of pixels, whole or not.
    return low + positions(mode, span + 1, n)


def _sampled(images: Array, rows: Array, columns: Array, pad_value: float) -> Array:
    """[B, C, H, W] at a grid of rows and columns → [B, C, h, w]; pad_value outside."""
    H, W = images.shape[-2:]
    result = images
    for axis, at, n in ((-2, rows, H), (-1, columns, W)):
        low = np.clip(np.floor(at), 0, n - 1).astype(np.intp)
        part = np.clip(at - low, 0, 1).astype(np.float32)
        part = part[:, None] if axis == -2 else part
        high = np.minimum(low + 1, n - 1)
        result = np.take(result, low, axis) * (1 - part) + np.take(result, high, axis) * part
    outside_rows = (rows < 0) | (rows > H - 1)
    outside = outside_rows[:, None] | ((columns < 0) | (columns > W - 1))
    return np.where(outside, np.float32(pad_value), result)
