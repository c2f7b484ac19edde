"""Captions as the U-Net is told them: states computed once, or ids where encoders are trained."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from macai.diffusion.conditioning import TextEncoder, encode
from macai.diffusion.prompt import Chunks, chunk_prompts
from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.training.buckets import Size
from macai.diffusion.training.cache import Cache, Entry
from macai.diffusion.training.pictures import Picture

AESTHETIC = 6.0  # what diffusers tells an XL refiner of a picture that is wanted


class Sized(Protocol):
    """A picture and the size it is brought to."""

    @property
    def picture(self) -> Picture: ...
    @property
    def size(self) -> Size: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the U-Net is told besides the picture; see DenoisingBatch."""

    hidden: mx.array | None
    pooled: mx.array | None
    ids: Sequence[mx.array]
    time_ids: mx.array | None


class Captions:
    """Turns captions into what the U-Net is told."""

    def __init__(
        self,
        tokenizers: Sequence[ClipTokenizer],
        encoders: Sequence[TextEncoder],
        *,
        trained: bool,
        time_ids: int | None,
        cache: Cache,
        encoders_name: str,
    ) -> None:
        """Take the text encoders with their tokenizers.

        Args:
            tokenizers: One an encoder.
            encoders: One or two.
            trained: Whether their states change; then ids are told, not states.
            time_ids: How many sizes an XL U-Net is told; None for other U-Nets.
            cache: Where states are kept.
            encoders_name: A name for the encoders' weights.
        """
        self._tokenizers = tokenizers
        self._encoders = encoders
        self._trained = trained
        self._time_ids = time_ids
        self._cache = cache
        self._name = encoders_name
        self._chunks: dict[str, list[Chunks]] = {}

    def __call__(self, captions: Sequence[str], pictures: Sequence[Sized]) -> Told:
        """Return what is told of a batch; captions too long for the encoders are cut."""
        sizes = None
        if self._time_ids is not None:
            sizes = mx.array([_sizes(p, self._time_ids) for p in pictures])
        if self._trained:
            chunks = [self.chunks(caption) for caption in captions]
            ids = [
                mx.array(np.concatenate([c.ids for c in of])) for of in zip(*chunks, strict=True)
            ]
            return Told(hidden=None, pooled=None, ids=ids, time_ids=sizes)
        states = [self._states(caption) for caption in captions]
        hidden = mx.array(np.concatenate([s["hidden"] for s in states]))
        pooled = None
        if self._time_ids is not None:
            pooled = mx.array(np.concatenate([s["pooled"] for s in states]))
        return Told(hidden=hidden, pooled=pooled, ids=(), time_ids=sizes)

    def chunks(self, caption: str) -> list[Chunks]:
        """Return the one chunk of a caption for each tokenizer; brackets in it are text."""
        if caption not in self._chunks:
            found = chunk_prompts([caption], self._tokenizers, weights=False)
            self._chunks[caption] = [rows[0] for rows in found]
        return self._chunks[caption]

    def is_cut(self, caption: str) -> bool:
        """Return whether a caption has more tokens than the encoders have room for."""
        return any(chunks.cut for chunks in self.chunks(caption))

    def _states(self, caption: str) -> Entry:
        chunks = self.chunks(caption)

        def make() -> Entry:
            told = encode(self._encoders, chunks, pooled=self._time_ids is not None)
            found = {"hidden": told.hidden} | (
                {} if told.pooled is None else {"pooled": told.pooled}
            )
            return {name: np.array(array.astype(mx.float32)) for name, array in found.items()}

        digest = hashlib.sha256(b"".join(c.ids.tobytes() for c in chunks)).hexdigest()
        return self._cache.get(f"{self._name[:16]}-{digest[:32]}", make)


def _sizes(of: Sized, count: int) -> list[float]:
    """Return the original size, what was cut off above and left, and the size it came to.

    As the picture was scaled until it covers the size, and what stood out cut off on two sides; in
    pixels of the scaled picture (SDXL paper, 2.2).
    """
    width, height, size = of.picture.width, of.picture.height, of.size
    scale = max(size.width / width, size.height / height)
    top = round((height * scale - size.height) / 2)
    left = round((width * scale - size.width) / 2)
    last = [float(size.height), float(size.width)] if count == 6 else [AESTHETIC]
    return [float(height), float(width), float(top), float(left), *last]
