"""Tell in which of the two styles an emoji is drawn, and learn to.

python recipes/data/emoji/style.py --data emoji --model recipes/emoji-diffusion [--out style.npz]

Half of the pictures that it learns from are as they are, blurred, noisy or recompressed; the other
half have gone through the model's autoencoder, as all that the model makes has: softness must not
decide. It never sees a picture that a model made. Without --out it leaves the emoji of each of
five folds out of what is learnt, and says how often it is right about those: see README.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX

# isort: split
import mlx.core as mx
import numpy as np
import numpy.typing as npt
from pictures import (
    DRAWN,
    HARMS,
    SIZE,
    Features,
    Gallery,
    Pixels,
    gallery_of,
    harmed,
    oklab,
    read_style,
)

from macai.diffusion.images import to_bytes
from macai.diffusion.loading import open_checkpoint

SHIPPED = Path(__file__).with_name("style.npz")
FOLDS, ROWS = 5, 32
LEARNT = ("plain", "blurred", "noisy", "recompressed")
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StyleClassifier:
    """Ridge regression between Noto (-1) and Fluent (+1), on what is drawn and how it is shaded.

    Attributes:
        mean, scale: What a description is normed with, [814].
        weights: Of the normed description, [814]; above -bias is Fluent.
    """

    mean: Features
    scale: Features
    weights: Features
    bias: float

    @classmethod
    def fit(cls, points: Mapping[str, Features], fluents: Bools) -> "StyleClassifier":
        """Learn from what `seen` returns of pictures; autoencoded ones, if any, weigh half."""
        kinds = list(LEARNT) + ["autoencoded"] * len(LEARNT) * ("autoencoded" in points)
        x = np.concatenate([points[kind] for kind in kinds])
        y = np.tile(np.where(fluents, 1.0, -1.0), len(kinds))
        mean, scale = x.mean(0), x.std(0) + 1e-6
        z = (x - mean) / scale
        gram = z.T @ z + 0.1 * len(z) * np.eye(z.shape[1])
        weights = np.linalg.solve(gram, z.T @ (y - y.mean()))
        return cls(mean, scale, weights, float(y.mean()))

    @classmethod
    def read(cls, path: Path = SHIPPED) -> "StyleClassifier":
        with np.load(path) as found:
            return cls(found["mean"], found["scale"], found["weights"], float(found["bias"]))

    def save(self, path: Path) -> None:
        np.savez(path, mean=self.mean, scale=self.scale, weights=self.weights, bias=self.bias)

    def is_fluent(self, points: Features) -> Bools:
        """What `described` returns of pictures -> [N]."""
        return (points - self.mean) / self.scale @ self.weights + self.bias > 0


def described(gallery: Gallery, pictures: Pixels) -> Features:
    """uint8 [N, 64, 64, 3] -> [N, 814]."""
    return np.concatenate([gallery.place(pictures), texture(pictures)], axis=1)


def texture(pictures: Pixels) -> Features:
    """Describe how pictures are shaded, wherever things are: [N, 46].

    Histograms of lightness, saturation and hue of what is drawn, and of the strength of gradients.
    """
    lab = oklab(pictures).reshape(len(pictures), -1, 3)
    white = oklab(np.full(3, 255, np.uint8))
    drawn = 1 - np.exp(-((lab - white) ** 2).sum(-1) / DRAWN**2)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.mod(np.arctan2(lab[..., 2], lab[..., 1]) / (2 * np.pi), 1)
    maps = lab[..., 0].reshape(-1, SIZE, SIZE)
    strength = np.hypot(*np.gradient(maps, axis=(1, 2))).reshape(len(pictures), -1)
    parts = [
        _histogram(lab[..., 0], drawn, 0, 1, 12),
        _histogram(chroma, drawn, 0, 0.3, 10),
        _histogram(hue, drawn * np.minimum(chroma / 0.05, 1), 0, 1, 12),
        _histogram(np.log10(strength + 1e-4), drawn, -4, 0, 12),
    ]
    return np.concatenate(parts, axis=1)


def _histogram(values: Features, weights: Features, low: float, high: float, bins: int) -> Features:
    """[N, P] twice -> [N, bins], shares of the weight; the square root evens out large ones."""
    places = np.clip((values - low) / (high - low) * bins, 0, bins - 1e-9).astype(int)
    rows = np.stack([np.bincount(p, w, bins) for p, w in zip(places, weights, strict=True)])
    return np.sqrt(rows / (rows.sum(1, keepdims=True) + 1e-9))


def seen(gallery: Gallery, pictures: Pixels, model: Path | None = None) -> dict[str, Features]:
    """Describe pictures as they are, after each harm but a shift, and through an autoencoder."""
    found = {"plain": described(gallery, pictures)}
    for name in LEARNT[1:]:
        found[name] = described(gallery, harmed(pictures, HARMS[name]))
    if model is not None:
        found["autoencoded"] = described(gallery, autoencoded(pictures, model))
    return found


def autoencoded(pictures: Pixels, model: Path) -> Pixels:
    """Return what the autoencoder of a model in diffusers' layout gives back of pictures."""
    vae = open_checkpoint(model, dtype="float32").load("vae")
    parts = []
    for begin in range(0, len(pictures), ROWS):
        rows = pictures[begin : begin + ROWS].astype(np.float32)
        parts.append(to_bytes(np.array(vae.decode(vae.encode(mx.array(rows / 127.5 - 1)).mean))))
    return np.concatenate(parts)


def accuracy(
    points: Mapping[str, Features], fluents: Bools, fold: npt.NDArray[np.int_]
) -> dict[str, float]:
    """Return how often the style is right in pictures of the folds that were not learnt from."""
    right: dict[str, list[Bools]] = {name: [] for name in points}
    for out in np.unique(fold):
        learnt, tested = fold != out, fold == out
        some = {name: each[learnt] for name, each in points.items()}
        classifier = StyleClassifier.fit(some, fluents[learnt])
        for name, each in points.items():
            right[name].append(classifier.is_fluent(each[tested]) == fluents[tested])
    return {name: float(np.concatenate(each).mean()) for name, each in right.items()}


def both_styles(data: Path) -> tuple[Pixels, Bools, npt.NDArray[np.int_]]:
    """Return all real pictures, which are Fluent, and a fold for each.

    A fold has both styles of its emoji, so that a thing is not known from the other style.
    """
    names, noto, _ = read_style(data / "noto")
    other_names, fluent, _ = read_style(data / "fluent")
    places = {name: i for i, name in enumerate(names)}
    fold = np.array([*range(len(names)), *(places[name] for name in other_names)]) % FOLDS
    fluents = np.repeat([False, True], [len(noto), len(fluent)])
    return np.concatenate([noto, fluent]), fluents, fold


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="what make.py wrote")
    parser.add_argument("--model", type=Path, required=True, help="with the autoencoder")
    parser.add_argument("--out", type=Path, help="where what was learnt goes")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    given = parser.parse_args(arguments)
    pictures, fluents, fold = both_styles(given.data)
    points = seen(gallery_of(given.data), pictures, given.model)
    if given.out:
        StyleClassifier.fit(points, fluents).save(given.out)
        return
    report = accuracy(points, fluents, fold)
    if given.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:24} {value:.3f}")


if __name__ == "__main__":
    main()
