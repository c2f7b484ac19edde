r"""Let a trained model draw emoji by their captions, for score.py and for looking at.

python recipes/data/emoji/draw.py --model runs/emoji-unet/model --captions emoji/noto/train \
    --out drawn

Writes a PNG for each caption and metadata.jsonl: what `macai image CAPTION --plain-prompt` makes
with the same seed. With --sheet also one picture of all, each below the emoji that its caption is
of.
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX
from macai.diffusion.images import to_bytes, write_picture
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.lora.apply import fuse
from macai.diffusion.lora.formats import read_lora
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.make import make
from macai.diffusion.models import from_config
from macai.diffusion.parts import TEXT, Parts
from macai.diffusion.pipeline import Pipeline, Request

SEED = 300  # of which captions are drawn
COLUMNS = 12
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A caption and the file of the emoji that it is of."""

    caption: str
    file: Path


def wanted(folder: Path, count: int) -> list[Wanted]:
    """Return the first captions of `count` emoji of a folder, chosen with a fixed seed; 0 is all.

    They are in the order of their names.
    """
    first: dict[str, str] = {}
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        first.setdefault(row["file_name"], row["text"])
    names = sorted(first)
    if 0 < count < len(names):
        names = sorted(random.Random(SEED).sample(names, count))
    return [Wanted(first[name], folder / name) for name in names]


def open_pipeline(model: Path, lora: Path | None) -> Pipeline:
    checkpoint = open_checkpoint(model, dtype="float32")
    if lora is None:
        return Pipeline(Parts(checkpoint))
    configs = checkpoint.configs
    lazy = {name: from_config(configs[name]) for name in ("unet", *TEXT) if name in configs}
    found = read_lora(lora, layers_of(lazy))

    def prepare(name: str, module: Any) -> None:
        if name != "vae":
            fuse({name: module}, [(found, 1.0)])

    return Pipeline(Parts(checkpoint, prepare=prepare))


def drawn(pipeline: Pipeline, request: Request) -> Pixels:
    """Return uint8 [H, W, 3]."""
    steps = make(pipeline, request)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            picture: Pixels = to_bytes(end.value)[0]
            return picture


def draw(
    pipeline: Pipeline, of: Sequence[Wanted], out: Path, options: Mapping[str, float]
) -> Iterator[Pixels]:
    """Write the pictures one after the other; number n has seed n, so they differ in noise too."""
    out.mkdir(parents=True)
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as rows:
        for number, one in enumerate(of):
            request = Request(
                prompt=one.caption,
                steps=int(options["steps"]),
                guidance=options["guidance"],
                seed=number,
                weighted=False,
            )
            picture = drawn(pipeline, request)
            write_picture(out / one.file.name, picture)
            row = {"file_name": one.file.name, "text": one.caption}
            rows.write(f"{json.dumps(row, ensure_ascii=False)}\n")
            rows.flush()
            yield picture


def sheet(real: Sequence[Pixels], made: Sequence[Pixels]) -> Pixels:
    """Return rows of real pictures [H, W, 3], each with what was drawn below, white between."""
    height, width, _ = real[0].shape
    gap, columns = height // 8, min(COLUMNS, len(real))
    rows = -(-len(real) // columns)
    page = np.full((rows * (2 * height + gap) - gap, columns * width, 3), 255, np.uint8)
    for i, pair in enumerate(zip(real, made, strict=True)):
        y, x = i // columns * (2 * height + gap), i % columns * width
        page[y : y + 2 * height, x : x + width] = np.concatenate(pair)
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True, help="in diffusers' layout")
    parser.add_argument("--lora", type=Path, help="a LoRA for it")
    parser.add_argument("--captions", type=Path, required=True, help="a folder that make.py wrote")
    parser.add_argument("--count", type=int, default=0, help="so many of them; else all")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path, help="a PNG of all, below the real ones")
    given = parser.parse_args(arguments)
    of = wanted(given.captions, given.count)
    options = {"steps": given.steps, "guidance": given.guidance}
    made = list(draw(open_pipeline(given.model, given.lora), of, given.out, options))
    if given.sheet:
        real = [np.asarray(Image.open(one.file).convert("RGB")) for one in of]
        write_picture(given.sheet, sheet(real, made))


if __name__ == "__main__":
    main()
