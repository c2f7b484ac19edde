"""Pictures of emoji: read, harmed, described, and found among all others.

The feature was fixed before any model was trained; README.md tells how far it can be trusted.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

SIZE, CELLS, ORIENTATIONS = 64, 8, 8
DRAWN = 0.1
"""Oklab distance from white at which a pixel is drawn rather than ground."""

Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float64]

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
"""Björn Ottosson, "A perceptual color space for image processing" (2020)."""


def oklab(pictures: Pixels) -> Features:
    """uint8 sRGB [..., 3] -> lightness from 0 to 1, and two colour axes."""
    value = pictures.astype(np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T


def pooling() -> Features:
    """Return [CELLS, SIZE]: triangles that overlap by half, for small shifts to change little."""
    width = SIZE / CELLS
    middles = (np.arange(CELLS) + 0.5) * width
    weights = np.maximum(0, 1 - np.abs(np.arange(SIZE) + 0.5 - middles[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


def pooled(maps: Features) -> Features:
    """[N, SIZE, SIZE, C] -> [N, CELLS * CELLS * C]."""
    cells = pooling()
    rows = np.einsum("cy,nyxk->ncxk", cells, maps)
    return np.einsum("dx,ncxk->ncdk", cells, rows).reshape(len(maps), -1)


def features(pictures: Pixels) -> dict[str, Features]:
    """Describe uint8 RGB [N, 64, 64, 3], on white.

    Returns:
        `colour`: [N, 192], an 8x8 thumbnail in Oklab.
        `shape`: [N, 512], gradients of lightness in 8x8 cells and 8 orientations, the square root
            of each cell's sum, as in histograms of oriented gradients but normed over the picture.
        `silhouette`: [N, 64], how much of each cell is drawn.
    """
    lab = oklab(pictures)
    white = oklab(np.full(3, 255, np.uint8))
    drawn = 1 - np.exp(-((lab - white) ** 2).sum(-1, keepdims=True) / DRAWN**2)
    down, right = np.gradient(lab[..., 0], axis=(1, 2))
    strength = np.hypot(down, right)
    angle = np.mod(np.arctan2(down, right), np.pi) * (ORIENTATIONS / np.pi)
    bins = np.arange(ORIENTATIONS)
    apart = np.abs(angle[..., None] - bins)
    near = np.maximum(0, 1 - np.minimum(apart, ORIENTATIONS - apart))
    shape = np.sqrt(pooled(strength[..., None] * near))
    shape /= np.linalg.norm(shape, axis=1, keepdims=True) + 1e-3
    return {"colour": pooled(lab), "shape": shape, "silhouette": pooled(drawn)}


@dataclass(frozen=True, slots=True)
class Gallery:
    """All emoji of a style that a generated picture may be nearest to.

    Attributes:
        captions: Of each emoji all its captions.
        scales: What divides each part of the feature, so that two emoji are on average 1 apart in
            the square of each.
        points: [N, 768], the emoji.
    """

    captions: tuple[frozenset[str], ...]
    scales: Mapping[str, float]
    points: Features

    @classmethod
    def of(cls, pictures: Pixels, captions: Sequence[frozenset[str]]) -> "Gallery":
        parts = features(pictures)
        # The mean square distance of all pairs is twice the variance.
        scales = {name: float(np.sqrt(2 * part.var(0).sum())) for name, part in parts.items()}
        return cls(tuple(captions), scales, _joined(parts, scales))

    def place(self, pictures: Pixels) -> Features:
        """uint8 [N, 64, 64, 3] -> [N, 768], comparable with `points` by Euclidean distance."""
        return _joined(features(pictures), self.scales)

    def all_ranks(self, pictures: Pixels) -> npt.NDArray[np.int_]:
        """Return how near each emoji is to each picture, [N, emoji]: 1 is the nearest."""
        found = []
        for point in self.place(pictures):
            distances = ((self.points - point) ** 2).sum(1)
            found.append(1 + np.searchsorted(np.sort(distances), distances))
        return np.stack(found)

    def places(self, captions: Sequence[str]) -> npt.NDArray[np.int_]:
        """Return which emoji each caption is of; ValueError if it is none's."""
        known = {text: i for i, texts in enumerate(self.captions) for text in texts}
        if unknown := [text for text in captions if text not in known]:
            raise ValueError(f"no emoji is called {unknown[0]!r}")
        return np.array([known[text] for text in captions])

    def ranks(self, pictures: Pixels, captions: Sequence[str]) -> list[int]:
        """Return for each picture how near the emoji of its caption is; ValueError as `places`."""
        places = self.places(captions)
        return [int(rank) for rank in self.all_ranks(pictures)[np.arange(len(places)), places]]


def _joined(parts: Mapping[str, Features], scales: Mapping[str, float]) -> Features:
    return np.concatenate([part / scales[name] for name, part in parts.items()], axis=1)


def read_folder(folder: Path) -> tuple[list[str], Pixels, list[list[str]]]:
    """Return names, uint8 [N, 64, 64, 3] and captions of a folder with metadata.jsonl."""
    texts: dict[str, list[str]] = {}
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts.setdefault(row["file_name"], []).append(row["text"])
    return list(texts), np.stack([read_picture(folder / name) for name in texts]), [*texts.values()]


def read_picture(path: Path) -> Pixels:
    """Return uint8 [64, 64, 3]; transparency is white."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    small = ground.convert("RGB")
    if small.size != (SIZE, SIZE):
        small = small.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small)


def read_style(folder: Path) -> tuple[list[str], Pixels, list[list[str]]]:
    """Return both splits of a style as `read_folder` does."""
    train, valid = read_folder(folder / "train"), read_folder(folder / "valid")
    return train[0] + valid[0], np.concatenate([train[1], valid[1]]), train[2] + valid[2]


def blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(0.8))


def shifted(picture: Image.Image) -> Image.Image:
    """Move by 2 pixels to the right and 1 down, white coming in."""
    moved = Image.new("RGB", picture.size, "white")
    moved.paste(picture, (2, 1))
    return moved


def noisy(picture: Image.Image) -> Image.Image:
    """Add noise of 8 of 255, the same in each picture."""
    noise = np.random.default_rng(0).normal(0, 8, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def recompressed(picture: Image.Image) -> Image.Image:
    """Go through JPEG of quality 40."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=40)
    return Image.open(stream).convert("RGB")


HARMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blurred": blurred,
    "shifted": shifted,
    "noisy": noisy,
    "recompressed": recompressed,
}


def harmed(pictures: Pixels, harm: Callable[[Image.Image], Image.Image]) -> Pixels:
    return np.stack([np.asarray(harm(Image.fromarray(picture))) for picture in pictures])


def gallery_of(data: Path) -> Gallery:
    """Return all of Noto, of the data that make.py wrote."""
    _, noto, captions = read_style(data / "noto")
    return Gallery.of(noto, [frozenset(texts) for texts in captions])
