"""The pictures of a run, each with its size."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from macai.diffusion.training.buckets import bucket_sizes
from macai.diffusion.training.examples import Example, examples
from macai.diffusion.training.pictures import Picture, hold_back, read_pictures, require_colour
from macai.diffusion.training.plan import Planner
from macai.errors import DataError, UsageError
from macai.recipe import DiffusionRecipe

BUCKET_LATENTS = 8  # sides of a bucket: what U-Nets of three halvings divide without a rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What is learnt from and what is validated on.

    Attributes:
        learnt: To learn from.
        held: To validate on; may be none.
        of_class: DreamBooth's class pictures; may be none.
    """

    learnt: list[Example]
    held: list[Example]
    of_class: list[Example]

    @property
    def all(self) -> list[Example]:
        """All of them."""
        return [*self.learnt, *self.held, *self.of_class]

    def digest(self) -> str:
        """Return a hash of files, captions and sizes, 64 hex digits."""
        digest = hashlib.sha256()
        for group in (self.learnt, self.held, self.of_class):
            for e in group:
                picture, size = e.picture, e.size
                line = (picture.digest, *picture.captions, size.width, size.height)
                digest.update(f"{line}\n".encode())
            digest.update(b"/")
        return digest.hexdigest()

    def sizes(self) -> dict[str, int]:
        """Return how many there are of each size, "512x512"."""
        return dict(Counter(f"{e.size.width}x{e.size.height}" for e in self.all))

    def enlarged(self) -> int:
        """Return how many are smaller than the size they are brought to."""
        return sum(
            e.picture.width < e.size.width or e.picture.height < e.size.height for e in self.all
        )


def read(recipe: DiffusionRecipe, data: Path, *, factor: int, side: int) -> Pictures:
    """Read the folders that a recipe names.

    Args:
        recipe: Its `data.path` is not read: `data` is what it named.
        data: The folder of pictures to learn from.
        factor: Pixels a latent is wide.
        side: Of the model's own square, in pixels.

    Raises:
        DataError: pictures or captions that cannot be used.
        UsageError: keys that do not go together.
    """
    options = recipe.data
    captions = recipe.diffusion.train != "vae"
    require_colour(options.background)
    if (options.class_path is None) != (options.class_prompt is None):
        raise UsageError(
            "data.class_path and data.class_prompt go together",
            hint="the folder of class pictures, and what they all show",
        )
    if options.class_path is not None and not captions:
        raise UsageError("an autoencoder has no prompts", hint="leave out data.class_path")
    learnt = read_pictures(data, prompt=options.prompt, captions=captions)
    held: list[Picture] = []
    if options.valid_path is not None:
        held = read_pictures(options.valid_path, prompt=options.prompt, captions=captions)
    elif options.valid_share:
        learnt, held = hold_back(learnt, options.valid_share)
    of_class: list[Picture] = []
    if options.class_path is not None:
        of_class = read_pictures(options.class_path, prompt=options.class_prompt)
    if not learnt:
        raise DataError(f"{data}: no picture is left to learn from", hint="lower data.valid_share")
    step = bucket_step(recipe, factor)
    if step % factor:
        raise UsageError(
            f"data.bucket_step: {step} is no multiple of {factor}",
            hint=f"a latent is {factor} pixels wide",
        )
    sizes = bucket_sizes(
        options.resolution or side,
        step=step,
        max_aspect=options.max_aspect if options.buckets else 1.0,
    )
    return Pictures(
        learnt=examples(learnt, sizes),
        held=examples(held, sizes),
        of_class=examples(of_class, sizes),
    )


def bucket_step(recipe: DiffusionRecipe, factor: int) -> int:
    """Return what sides of buckets are multiples of, where a latent is `factor` pixels wide."""
    return recipe.data.bucket_step or BUCKET_LATENTS * factor


def planner(recipe: DiffusionRecipe, pictures: Pictures) -> Planner:
    """Return what puts the pictures together to steps."""
    return Planner(
        [e.size for e in pictures.learnt],
        images=recipe.batch.images,
        micro_images=recipe.batch.micro_images,
        repeats=recipe.data.repeats,
        seed=recipe.train.seed,
        class_sizes=[e.size for e in pictures.of_class],
    )
