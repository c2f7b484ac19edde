"""Write the emoji pictures and captions of emoji-diffusion: see README.md.

python recipes/data/emoji/make.py --out emoji

Writes {out}/noto and {out}/fluent, each with train/ and valid/: 64x64 PNGs and metadata.jsonl; and
{out}/both, the pictures of the two, for an autoencoder.
"""

import argparse
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

HERE = Path(__file__).parent
SIZE = 64
SEED = 64
HELD_OUT = 60

GOOGLE = "emoji-datasource-google@16.0.0"
FLUENT = "@lobehub/fluent-emoji-3d@1.1.0"
SHA256 = {
    GOOGLE: "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    FLUENT: "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
}
"""Of the .tgz files."""

NEAREST = 0.2
"""A picture closer than this to an earlier one is left out: see `distances`."""

LEFT_OUT_CATEGORIES = {"Flags", "Component"}
LEFT_OUT_SUBCATEGORIES = {"keycap", "alphanum"}
LEFT_OUT_NAMES = re.compile(
    r"FAMILY:|FACING RIGHT|CLOCK FACE .*-THIRTY|(BACK|END|ON|SOON|TOP) WITH .*ARROW"
)
"""Silhouettes of families, mirror images, half hours, words under arrows."""

GENDERED = re.compile(r"(?:WO)?M[AE]N .")
WITHOUT_GENDERED = {"person-gesture", "person-activity", "person-sport", "person-resting"}
"""Where only the person without a stated gender is kept."""

KINDS = {
    "face-": "face",
    "cat-face": "cat face",
    "monkey-face": "monkey",
    "heart": "heart",
    "hand": "hand",
    "body-parts": "body part",
    "person": "person",
    "family": "people",
    "animal-": "animal",
    "plant-": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-sweet": "sweet food",
    "food-": "food",
    "drink": "drink",
    "place-": "place",
    "transport-sign": "sign",
    "transport-": "vehicle",
    "sky": "weather",
    "time": "clock",
    "sport": "sport",
    "award-medal": "medal",
    "clothing": "clothing",
    "sound": "sound",
    "music": "music",
    "musical-instrument": "musical instrument",
    "phone": "phone",
    "light": "light",
    "book-paper": "paper",
    "money": "money",
    "mail": "mail",
    "writing": "writing",
    "office": "office",
    "lock": "lock",
    "tool": "tool",
    "science": "science",
    "medical": "medical",
    "household": "household",
    "warning": "sign",
    "arrow": "arrow sign",
    "religion": "symbol",
    "zodiac": "zodiac symbol",
    "av-symbol": "button",
    "gender": "symbol",
    "math": "symbol",
    "punctuation": "symbol",
    "currency": "symbol",
    "other-symbol": "symbol",
    "geometric": "shape",
}
"""The word for a subcategory that begins so; the first that fits."""

NOT_WORDS = {"hankey", "shit", "poop", "tada", "o", "x", "v", "tm", "wc", "atm", "fries", "on"}
"""Short names that say less than the name, or what a picture model need not draw."""

MISLEADING = re.compile("(white|black|heavy)")
"""In Unicode's names these tell of an outlined or a filled glyph."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Emoji:
    """One picture and what it may be called.

    Attributes:
        code: Its code points, lower-case hexadecimal with "-" between: the name of its files.
        captions: The first is the one to ask for; no two emoji share one.
        kind: The word for its subcategory, or "".
        pixels: uint8 [64, 64, 3], on white.
    """

    code: str
    captions: tuple[str, ...]
    kind: str
    pixels: Pixels

    @property
    def words(self) -> list[str]:
        return self.captions[0].split()

    def rows(self) -> list[str]:
        """Return its captions and one that says its kind as well."""
        told = f"{self.captions[0]}, {self.kind}"
        more = self.kind and self.kind not in self.captions[0]
        return [*self.captions, told] if more else list(self.captions)


def packed(package: str, given: Path | None, folder: Path) -> Path:
    """Return the checked .tgz of an npm package: `given`, or what `npm pack` fetches to `folder`.

    Raises:
        SystemExit: there is no npm, or the file is another one.
    """
    if given is None:
        if shutil.which("npm") is None:
            raise SystemExit(f"no npm here: fetch {package} elsewhere and give the .tgz's path")
        run = subprocess.run(
            ["npm", "pack", package, "--json"], cwd=folder, check=True, capture_output=True
        )
        name = json.loads(run.stdout)[0]["filename"]
        given = folder / name.replace("@", "").replace("/", "-")
    digest = hashlib.sha256(given.read_bytes()).hexdigest()
    if SHA256[package] != digest:
        raise SystemExit(f"{given}: not {package}: its SHA-256 is {digest}")
    return given


def members(file: Path, prefix: str) -> dict[str, bytes]:
    """Return the files of a .tgz whose names begin with `prefix`, by the rest of their names."""
    found = {}
    with tarfile.open(file) as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(prefix):
                stream = archive.extractfile(member)
                assert stream is not None
                found[member.name.removeprefix(prefix)] = stream.read()
    return found


def on_white(data: bytes) -> Pixels:
    """Decode a picture with transparency: uint8 [64, 64, 3]."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return np.asarray(ground.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def is_wanted(entry: Mapping[str, Any]) -> bool:
    """Say whether an entry of emoji.json is kept by the rules above."""
    name, kind = entry["name"], entry["subcategory"]
    return not (
        not entry["has_img_google"]
        or entry["category"] in LEFT_OUT_CATEGORIES
        or kind in LEFT_OUT_SUBCATEGORIES
        or LEFT_OUT_NAMES.match(name)
        or (kind in WITHOUT_GENDERED and GENDERED.match(name))
    ) and not re.search(r"FACING RIGHT$", name)


def cleaned(text: str) -> str:
    """Return a name as a caption: lower case, letters and spaces only but for digits and "-"."""
    text = text.lower().replace("oclock", "o'clock").replace("’", "'")
    text = re.sub(r"\b(wo)?mans\b", lambda m: f"{m[1] or ''}man's", text)
    text = re.sub(r"\b(hand|hands|thumbs up|thumbs down|moon) (sign|symbol)\b", r"\1", text)
    return " ".join(re.sub(r"[_:,]", " ", text).split())


def aliases(entry: Mapping[str, Any]) -> Iterator[str]:
    """Give the short names that are words."""
    for short in entry["short_names"]:
        alias = cleaned(short.replace("-", " ") if "_" not in short else short)
        if alias not in NOT_WORDS and re.fullmatch(r"[a-z' -]+", alias) and len(alias) > 1:
            yield alias


def named(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the captions of each entry: its name, then short names that are nobody else's.

    Raises:
        ValueError: two entries have one name.
    """
    written: dict[str, str] = json.loads((HERE / "captions.json").read_text(encoding="utf-8"))
    official = Counter(entry["name"] for entry in entries)
    names = []
    for entry in entries:
        name = written.get(entry["name"], cleaned(entry["name"]))
        # "MAN: RED HAIR" is red_haired_man; two are called MAN IN TUXEDO.
        if entry["name"] not in written and (":" in entry["name"] or official[entry["name"]] > 1):
            name = next(aliases(entry))
        names.append(name)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two emoji have one caption: {', '.join(twice)}")
    of_all = Counter(alias for entry in entries for alias in set(aliases(entry)))
    found = []
    for entry, name in zip(entries, names, strict=True):
        own = [
            alias
            for alias in aliases(entry)
            if of_all[alias] == 1 and alias not in names and not MISLEADING.match(alias)
        ]
        found.append(tuple(dict.fromkeys([name, *own])))
    return found


def kind_of(subcategory: str) -> str:
    return next((word for start, word in KINDS.items() if subcategory.startswith(start)), "")


def distances(
    pictures: npt.NDArray[np.float64], picture: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Compare [N, D] with [D], whole numbers of how much darker than white each value is.

    The root mean square difference, over the geometric mean of both pictures' root mean squares: or
    two small things on a white ground would always be alike. Sums of whole numbers are exact, so
    every machine keeps the same pictures.
    """
    squares, square = np.einsum("nd,nd->n", pictures, pictures), picture @ picture
    apart = squares + square - 2 * (pictures @ picture)
    return np.sqrt(apart / np.maximum(np.sqrt(squares * square), 1))


def read_google(files: Mapping[str, bytes]) -> list[Emoji]:
    """Return the emoji of the Google package in its order, near-identical ones left out."""
    entries = [entry for entry in json.loads(files["emoji.json"]) if is_wanted(entry)]
    entries.sort(key=lambda entry: entry["sort_order"])
    kept: list[Emoji] = []
    drawn = np.empty((len(entries), 3 * SIZE * SIZE))
    for entry, captions in zip(entries, named(entries), strict=True):
        pixels = on_white(files[f"img/google/64/{entry['image']}"])
        drawn[len(kept)] = 255.0 - pixels.reshape(-1)
        if kept and distances(drawn[: len(kept)], drawn[len(kept)]).min() < NEAREST:
            continue
        code = entry["unified"].lower()
        kept.append(Emoji(code, captions, kind_of(entry["subcategory"]), pixels))
    return kept


def read_fluent(files: Mapping[str, bytes], wanted: Iterable[Emoji]) -> list[Emoji]:
    """Return the wanted emoji in Fluent's style, without the few that it lacks."""
    found = []
    for emoji in wanted:
        bare = emoji.code.replace("-fe0f", "")
        names = (emoji.code, f"{emoji.code}-fe0f", bare)
        data = next((files[f"{name}.webp"] for name in names if f"{name}.webp" in files), None)
        if data is not None:
            found.append(Emoji(emoji.code, emoji.captions, emoji.kind, on_white(data)))
    return found


def held_out(emoji: Sequence[Emoji], count: int = HELD_OUT) -> set[str]:
    """Choose the codes to hold out: each word of their captions is in two others that stay."""
    uses = Counter(word for one in emoji for word in set(one.words))
    order = random.Random(SEED).sample(list(emoji), len(emoji))
    kinds: Counter[str] = Counter()
    chosen: set[str] = set()
    for one in order:
        told = [word for word in one.words if word not in {"with", "of", "and", "in", "a", "the"}]
        enough = len(told) > 1 and all(uses[word] > 2 for word in told)
        if len(chosen) < count and enough and kinds[one.kind] < 4:
            chosen.add(one.code)
            kinds[one.kind] += 1
            uses.subtract(set(one.words))
    return chosen


def write(folder: Path, emoji: Sequence[Emoji], chosen: set[str]) -> dict[str, Any]:
    """Write one style's train/ and valid/; return its counts and a digest of pixels and captions.

    The digest does not depend on how the PNGs are packed, which a zlib decides.
    """
    digest = hashlib.sha256()
    report: dict[str, Any] = {}
    for split, of_split in (("train", False), ("valid", True)):
        (folder / split).mkdir(parents=True)
        pictures, rows = 0, []
        for one in emoji:
            if (one.code in chosen) != of_split:
                continue
            pictures += 1
            Image.fromarray(one.pixels).save(folder / split / f"{one.code}.png", optimize=True)
            texts = one.captions[:1] if of_split else one.rows()
            rows += [{"file_name": f"{one.code}.png", "text": text} for text in texts]
            digest.update(one.pixels.tobytes())
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (folder / split / "metadata.jsonl").write_bytes(lines.encode())
        digest.update(lines.encode())
        report[split] = {"pictures": pictures, "captions": len(rows)}
    return report | {"sha256": digest.hexdigest()}


def make(google: Path, fluent: Path, out: Path) -> dict[str, Any]:
    """Write both styles to `out`, whose folders must not be there yet."""
    noto = read_google(members(google, "package/"))
    chosen = held_out(noto)
    styles = {"noto": noto, "fluent": read_fluent(members(fluent, "package/assets/"), noto)}
    report = {style: write(out / style, emoji, chosen) for style, emoji in styles.items()}
    both = [
        replace(one, code=f"{style}-{one.code}") for style, emoji in styles.items() for one in emoji
    ]
    held = {f"{style}-{code}" for style in styles for code in chosen}
    return report | {"both": write(out / "both", both, held)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="gets noto/ and fluent/")
    parser.add_argument("--google", type=Path, help=f".tgz of {GOOGLE}; else npm pack")
    parser.add_argument("--fluent", type=Path, help=f".tgz of {FLUENT}; else npm pack")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        google = packed(GOOGLE, given.google, Path(temporary))
        fluent = packed(FLUENT, given.fluent, Path(temporary))
        print(json.dumps(make(google, fluent, given.out), indent=2))


if __name__ == "__main__":
    main()
