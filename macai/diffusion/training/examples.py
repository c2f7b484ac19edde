"""From pictures and captions to batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from macai.diffusion.images import read_picture
from macai.diffusion.latents import Latents
from macai.diffusion.training.buckets import Size, choose
from macai.diffusion.training.cache import Cache, Entry
from macai.diffusion.training.captions import Captions
from macai.diffusion.training.draws import generator
from macai.diffusion.training.losses import DenoisingBatch, PixelBatch
from macai.diffusion.training.noising import UNIFORM, Noising, TimestepChoice
from macai.diffusion.training.pictures import Picture
from macai.diffusion.training.plan import Slot

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """A picture and the size it is brought to."""

    picture: Picture
    size: Size


def examples(pictures: Sequence[Picture], sizes: Sequence[Size]) -> list[Example]:
    """Return each picture with the size that suits it."""
    return [Example(p, choose(sizes, p.width, p.height)) for p in pictures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Randomness:
    """What is drawn for each place of each step.

    Attributes:
        seed: Of the run.
        timesteps: How the amount of noise is drawn.
        noise_offset: Share of noise that a whole channel has in common.
        caption_dropout: Probability that a caption is left out.
        flip: Whether a picture is mirrored half of the time.
    """

    seed: int
    timesteps: TimestepChoice = UNIFORM
    noise_offset: float = 0.0
    caption_dropout: float = 0.0
    flip: bool = False


class Pixels:
    """Pictures as arrays, read once."""

    def __init__(self, cache: Cache, *, background: str) -> None:
        """Take where they are kept, and what shows through where they are transparent."""
        self._cache = cache
        self._background = background

    def __call__(self, example: Example, *, flipped: bool = False) -> Floats:
        """Return float32 [1, H, W, 3] in [-1, 1]."""
        size = (example.size.width, example.size.height)

        def read() -> Entry:
            pixels = read_picture(example.picture.file, size, background=self._background)
            return {"pixels": np.round((pixels + 1) * 127.5).astype(np.uint8)}

        stored = self._cache.get(self.key(example), read)["pixels"]
        pixels = stored.astype(np.float32) / np.float32(127.5) - 1
        return np.ascontiguousarray(pixels[:, :, ::-1]) if flipped else pixels

    def key(self, example: Example) -> str:
        """Return what the pixels depend on, as a name."""
        colour = self._background.lstrip("#")
        size = example.size
        return f"{example.picture.digest[:32]}-{size.width}x{size.height}-{colour}"


class Moments:
    """Means and deviations of pictures' latents, encoded once: each time others are drawn."""

    def __init__(self, cache: Cache, pixels: Pixels, latents: Latents, vae: str) -> None:
        """Take where they are kept, the autoencoder, and a name for its weights."""
        self._cache = cache
        self._pixels = pixels
        self._latents = latents
        self._vae = vae

    def __call__(self, example: Example, *, flipped: bool = False) -> Entry:
        """Return "mean" and "std", float32 [1, h, w, C], of the autoencoder's own latents."""

        def encode() -> Entry:
            pixels = mx.array(self._pixels(example, flipped=flipped))
            posterior = self._latents.vae.encode(
                pixels.astype(self._latents.vae.encoder.conv_in.weight.dtype)
            )
            found = {"mean": posterior.mean, "std": posterior.std}
            return {name: np.array(array.astype(mx.float32)) for name, array in found.items()}

        name = f"{self._vae[:16]}-{self._pixels.key(example)}{'-flipped' if flipped else ''}"
        return self._cache.get(name, encode)


class Batches:
    """Makes batches for a denoiser."""

    def __init__(
        self,
        moments: Moments,
        captions: Captions,
        latents: Latents,
        noising: Noising,
        randomness: Randomness,
        *,
        min_snr_gamma: float = 0.0,
        prior_weight: float = 1.0,
    ) -> None:
        """Take the parts; the last two are the recipe's."""
        self._moments = moments
        self._captions = captions
        self._latents = latents
        self._noising = noising
        self._random = randomness
        self._gamma = min_snr_gamma
        self._prior_weight = prior_weight

    def training(
        self,
        step: int,
        slots: Sequence[Slot],
        learnt: Sequence[Example],
        of_class: Sequence[Example] = (),
    ) -> DenoisingBatch:
        """Return a part of a step; the pictures in its slots have one size."""
        rows, weights = [], []
        for slot in slots:
            example = (of_class if slot.of_class else learnt)[slot.picture]
            what = (self._random.seed, "step", step, slot.number, slot.picture, int(slot.of_class))
            rows.append(self._drawn(example, *what))
            weights.append(self._prior_weight if slot.of_class else 1.0)
        images = sum(not slot.of_class for slot in slots)
        return self._batch(rows, np.array(weights, np.float32), images)

    def validation(
        self, held: Sequence[Example], draws: int, images: int
    ) -> Iterator[Callable[[], DenoisingBatch]]:
        """Yield what makes each batch: every picture `draws` times, always with the same noise.

        The timesteps of a picture are spread evenly, so that few draws say much.
        """
        by_size: dict[Size, list[tuple[Example, int]]] = {}
        for example in held:
            for draw in range(draws):
                by_size.setdefault(example.size, []).append((example, draw))
        for group in by_size.values():
            for i in range(0, len(group), images):
                part = group[i : i + images]
                yield partial(self._validation, part, draws)

    def _validation(self, part: Sequence[tuple[Example, int]], draws: int) -> DenoisingBatch:
        rows = [
            self._drawn(example, "validation", example.picture.digest, draw, strata=(draw, draws))
            for example, draw in part
        ]
        return self._batch(rows, np.ones(len(rows), np.float32), len(rows))

    def _drawn(
        self, example: Example, *what: int | str, strata: tuple[int, int] | None = None
    ) -> "_Row":
        """Draw all that is random of one picture.

        For validation `strata` says of how many equal parts of the timesteps which one.
        """
        chance, normals = generator(*what, "chance"), generator(*what, "noise")
        share, dropped, flipped = chance.random(3)
        normal = float(chance.standard_normal())
        random = self._random
        if strata is None:
            timestep = random.timesteps.quantile(share, normal, self._noising.count)
        else:
            which, count = strata
            timestep = UNIFORM.quantile((which + share) / count, 0.0, self._noising.count)
        training = strata is None
        moments = self._moments(example, flipped=training and random.flip and flipped < 0.5)
        shape = moments["mean"].shape
        latents = moments["mean"] + moments["std"] * normals.standard_normal(shape, np.float32)
        noise = normals.standard_normal(shape, np.float32)
        if random.noise_offset and training:
            channel = normals.standard_normal((1, 1, 1, shape[-1]), np.float32)
            noise = noise + np.float32(random.noise_offset) * channel
        caption = example.picture.caption
        if training:
            caption = example.picture.captions[int(chance.integers(len(example.picture.captions)))]
            caption = "" if dropped < random.caption_dropout else caption
        return _Row(example, latents, noise, timestep, caption)

    def _batch(self, rows: "Sequence[_Row]", weights: Floats, images: int) -> DenoisingBatch:
        latents = self._latents.normalise(mx.array(np.concatenate([r.latents for r in rows])))
        noise = mx.array(np.concatenate([r.noise for r in rows]))
        timesteps = np.array([r.timestep for r in rows], np.int64)
        told = self._captions([r.caption for r in rows], [r.example for r in rows])
        return DenoisingBatch(
            noisy=self._noising.noisy(latents, noise, timesteps),
            target=self._noising.target(latents, noise, timesteps),
            timesteps=mx.array(timesteps.astype(np.float32)),
            weights=mx.array(weights * self._noising.weights(timesteps, self._gamma)),
            hidden=told.hidden,
            pooled=told.pooled,
            ids=told.ids,
            time_ids=told.time_ids,
            images=images,
        )


@dataclass(frozen=True, slots=True)
class _Row:
    example: Example
    latents: Floats
    noise: Floats
    timestep: int
    caption: str


class PixelBatches:
    """Makes batches for an autoencoder."""

    def __init__(
        self, pixels: Pixels, *, factor: int, channels: int, seed: int, flip: bool = False
    ) -> None:
        """Take the pictures, and pixels a latent is wide and its channels."""
        self._pixels = pixels
        self._factor = factor
        self._channels = channels
        self._seed = seed
        self._flip = flip

    def training(self, step: int, slots: Sequence[Slot], learnt: Sequence[Example]) -> PixelBatch:
        """Return a part of a step; the pictures in its slots have one size."""
        whats = [(self._seed, "step", step, slot.number, slot.picture) for slot in slots]
        return self._batch([learnt[s.picture] for s in slots], whats, flip=self._flip)

    def validation(
        self, held: Sequence[Example], images: int
    ) -> Iterator[Callable[[], PixelBatch]]:
        """Yield what makes each batch: every picture once, always with the same noise."""
        by_size: dict[Size, list[Example]] = {}
        for example in held:
            by_size.setdefault(example.size, []).append(example)
        for group in by_size.values():
            for i in range(0, len(group), images):
                part = group[i : i + images]
                whats = [("validation", e.picture.digest) for e in part]
                yield partial(self._batch, part, whats, flip=False)

    def _batch(
        self, of: Sequence[Example], whats: Sequence[tuple[int | str, ...]], *, flip: bool
    ) -> PixelBatch:
        pixels, noise = [], []
        for example, what in zip(of, whats, strict=True):
            flipped = flip and generator(*what, "chance").random() < 0.5
            pixels.append(self._pixels(example, flipped=flipped))
            size = example.size
            shape = (1, size.height // self._factor, size.width // self._factor, self._channels)
            noise.append(generator(*what, "noise").standard_normal(shape, np.float32))
        return PixelBatch(
            pixels=mx.array(np.concatenate(pixels)), noise=mx.array(np.concatenate(noise))
        )
