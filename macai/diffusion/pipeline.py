"""Text, pictures and masks to latents, and latents to pictures, as diffusers' pipelines do it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from macai.diffusion.conditioning import Conditioning, encode, guidance_embedding, time_ids
from macai.diffusion.denoise import Kept, Step, denoise
from macai.diffusion.latents import Latents, drawing, mask_for
from macai.diffusion.parts import Parts
from macai.diffusion.predict import Control, Predictor
from macai.diffusion.prompt import chunk_prompts
from macai.diffusion.random import Noise
from macai.diffusion.schedulers import make_scheduler
from macai.diffusion.schedulers.base import NoiseSource, Scheduler
from macai.errors import UsageError

INPAINT_CHANNELS = 9  # latents, mask and the masked picture's latents
AESTHETIC = (6.0, 2.5)  # what diffusers tells a refiner of prompt and negative prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to make.

    Attributes:
        prompt: What the picture shows.
        negative: What it keeps away from; None is not the same as "" for SDXL.
        width: In pixels; None is the model's own size, or the given picture's.
        height: In pixels; see `width`.
        steps: Of the scheduler, for the whole way from noise.
        guidance: Classifier-free guidance; 1 or less does without.
        rescale: See Predictor.
        scheduler: A name in schedulers.SCHEDULERS; None is the model's own.
        eta: Share of fresh noise for the schedulers that have a choice; None is their default.
        seed: Of the first picture; the next ones have the numbers after it.
        count: Pictures made together.
        rng: Whose random numbers; see random.Noise.
        clip_skip: Last layers of the text encoders that the prompt leaves out; the negative prompt
            goes through all of them, as in diffusers.
        weighted: Whether (this:1.2) in a prompt is a weight.
        picture: To start from: float32 [1 or count, H, W, 3] in [-1, 1].
        strength: How much of the way from noise is gone, from `picture`.
        mask: What of `picture` is made anew: float32 [1, H, W, 1] of 0 and 1.
        controls: ControlNets with their pictures.
        latents: What another model has left, [count, h, w, C]; for `start`.
        start: The share of the way that made `latents`.
        end: The share of the way after which another model goes on.
    """

    prompt: str
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int = 25
    guidance: float = 7.5
    rescale: float = 0.0
    scheduler: str | None = None
    eta: float | None = None
    seed: int = 0
    count: int = 1
    rng: str = "torch"
    clip_skip: int = 0
    weighted: bool = True
    picture: np.ndarray | None = None
    strength: float = 0.8
    mask: np.ndarray | None = None
    controls: Sequence[Control] = ()
    latents: mx.array | None = None
    start: float | None = None
    end: float | None = None


class Pipeline:
    """A model ready to make pictures."""

    def __init__(self, parts: Parts, *, serial: bool = False) -> None:
        """Take the components of a model.

        Args:
            parts: Loaded when they are first needed, and let go where memory is short.
            serial: Whether prompt and negative prompt go through the U-Net one after the other.
        """
        self.parts = parts
        self.serial = serial

    def size(self, request: Request) -> tuple[int, int]:
        """Return width and height in pixels; UsageError if the model cannot make them."""
        factor = self.parts.latents_factor
        if request.picture is not None:
            height, width = request.picture.shape[1:3]
        else:
            sample = self.parts.unet_config.sample_size or 64
            rows, columns = (sample, sample) if isinstance(sample, int) else sample
            width = columns * factor if request.width is None else request.width
            height = rows * factor if request.height is None else request.height
        if width % factor or height % factor or min(width, height) < factor:
            raise UsageError(
                f"{width}x{height} pixels: sides must be multiples of {factor}",
                hint=f"for instance {_near(width, factor)}x{_near(height, factor)}",
            )
        return width, height

    def check(self, request: Request) -> None:
        """Raise UsageError if the request cannot be followed; no weights are needed."""
        self.size(request)
        self._scheduler(request)
        self._sources(request)
        self._check_masks(request)
        if request.count < 1 or request.steps < 1:
            raise UsageError("--count and --steps are at least 1")
        layers = min(config.num_hidden_layers for config in self.parts.text_configs)
        most = layers - 1 if self.parts.time_ids is not None else layers
        if not 0 <= request.clip_skip <= most:
            raise UsageError(
                f"clip_skip {request.clip_skip}: the text encoder has {layers} layers",
                hint=f"0 to {most}; 1 and 2 are usual",
            )

    def sample(self, request: Request) -> Iterator[Step]:
        """Make latents, and yield them after every step; the last ones are the result.

        Raises:
            UsageError: Values that do not go together.
            ModelError: A component cannot be loaded, or gives no numbers.
        """
        self.check(request)
        width, height = self.size(request)
        scheduler = self._scheduler(request)
        predict = self.predictor(request, width, height)
        sources = self._sources(request)
        noise = drawing(sources)
        latents, kept, extra = self._begin(request, scheduler, sources, noise, (height, width))
        steps = denoise(replace(predict, extra=extra), scheduler, latents, noise=noise, kept=kept)
        for step in steps:
            if step.done == step.total:
                # Apple's package decodes its scheduler's last guess, not its last sample.
                step = replace(step, latents=scheduler.decoded(step.latents))
            yield step

    def guided(self, request: Request) -> bool:
        """Return whether there is classifier-free guidance, and so a negative prompt."""
        return request.guidance > 1 and self.parts.unet_config.time_cond_proj_dim is None

    def decode(self, latents: mx.array) -> np.ndarray:
        """Return pictures, float32 [B, H, W, 3] about [-1, 1], of a result's latents."""
        scaled = Latents(self.parts.vae)
        return np.array(self.parts.decode(scaled.restore(latents)).astype(mx.float32))

    def predictor(self, request: Request, width: int, height: int) -> Predictor:
        """Return the U-Net with what it is told about prompt and size."""
        config = self.parts.unet_config
        positive, negative = self._told(request, self.guided(request))
        condition = None
        if config.time_cond_proj_dim is not None:
            condition = guidance_embedding(request.guidance, config.time_cond_proj_dim)
        sizes = None
        if count := self.parts.time_ids:
            scores = AESTHETIC if count == 5 else (None, None)
            ids = [time_ids(width, height, count=count, aesthetic_score=s) for s in scores]
            sizes = (ids[0], ids[1])
        return Predictor(
            unet=self.parts.unet,
            positive=positive,
            negative=negative,
            guidance=request.guidance,
            rescale=request.rescale,
            serial=self.serial,
            time_ids=sizes,
            timestep_cond=condition,
            controls=request.controls,
        )

    def _told(self, request: Request, guided: bool) -> tuple[Conditioning, Conditioning | None]:
        """Return what the U-Net is told of prompt and negative prompt."""
        pooled = self.parts.time_ids is not None
        prompts = [request.prompt, request.negative or ""] if guided else [request.prompt]
        encoders, tokenizers = self.parts.text_encoders, self.parts.tokenizers
        by_tokenizer = chunk_prompts(prompts, tokenizers, weights=request.weighted)
        skips = [request.clip_skip, 0][: len(prompts)]
        told = [
            encode(encoders, chunks, pooled=pooled, clip_skip=skip)
            for *chunks, skip in zip(*by_tokenizer, skips, strict=True)
        ]
        mx.eval([(one.hidden, one.pooled) for one in told])
        self.parts.done_with_text()
        if not guided:
            return told[0], None
        if request.negative is None and self.parts.zeros_without_negative:
            return told[0], told[0].zeros()
        return told[0], told[1]

    def _begin(
        self,
        request: Request,
        scheduler: Scheduler,
        sources: Sequence[Noise],
        noise: NoiseSource,
        size: tuple[int, int],
    ) -> tuple[mx.array, Kept | None, mx.array | None]:
        """Return the first latents, what is kept, and extra channels, drawn as diffusers draws."""
        if request.latents is not None and request.mask is None:
            return request.latents, None, None
        height, width = (side // self.parts.latents_factor for side in size)
        shape = (request.count, height, width, self.parts.latent_channels)
        if request.picture is None:
            return mx.array(noise(shape)) * scheduler.init_noise_sigma, None, None
        scaled = Latents(self.parts.vae)
        picture = mx.array(request.picture)
        whole = request.mask is not None and request.strength == 1
        with_channels = self.parts.unet_config.in_channels == INPAINT_CHANNELS
        original = None
        if not (whole and with_channels):
            original = scaled.encode(picture, sources)
        drawn = mx.array(noise(shape))
        if request.latents is not None:
            latents = request.latents
        elif whole:
            latents = drawn * scheduler.init_noise_sigma
        else:
            latents = scheduler.add_noise(original, drawn, 0)
        if request.mask is None:
            return latents, None, None
        mask = mask_for(request.mask, height, width)
        if with_channels:
            masked = scaled.encode(picture * (mx.array(request.mask) < 0.5), sources)
            wide = mx.broadcast_to(mask, (*masked.shape[:-1], 1))
            return latents, None, mx.concatenate([wide, masked], axis=-1)
        noise(shape)  # diffusers encodes the masked picture here as well, and leaves it
        assert original is not None
        return latents, Kept(original, drawn, mask), None

    def _scheduler(self, request: Request) -> Scheduler:
        """Return the scheduler with its timesteps."""
        config = self.parts.scheduler_config
        scheduler = make_scheduler(request.scheduler, config, eta=request.eta)
        scheduler.set_timesteps(
            request.steps,
            strength=None if request.picture is None else request.strength,
            denoising_start=request.start,
            denoising_end=request.end,
            all_steps=self.parts.unet_config.time_cond_proj_dim is not None,
        )
        return scheduler

    def _sources(self, request: Request) -> list[Noise]:
        return [Noise(request.rng, request.seed + k) for k in range(request.count)]

    def _check_masks(self, request: Request) -> None:
        channels, latents = self.parts.unet_config.in_channels, self.parts.latent_channels
        if channels == INPAINT_CHANNELS and request.mask is None:
            raise UsageError(
                "this is an inpainting model: it needs a picture and a mask",
                hint="add --image photo.png --mask mask.png",
            )
        if request.mask is not None and request.picture is None:
            raise UsageError("a mask without a picture", hint="add --image photo.png")
        if channels not in (INPAINT_CHANNELS, latents):
            raise UsageError(
                f"a U-Net of {channels} input channels, and latents of {latents}: not for this "
                "command",
                hint="it makes pictures with text-to-image and inpainting models",
            )


def _near(side: int, factor: int) -> int:
    return max(factor, round(side / factor) * factor)
