"""A folder of captioned pictures, every bad file of it named at once."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageColor

from macai.diffusion.images import upright_size
from macai.errors import DataError, FormatError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
HINT = (
    f'captions are the rows {{"file_name", "text"}} of {METADATA}, or .txt files beside the '
    "pictures; or set data.prompt for all that have none"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture to learn from.

    Attributes:
        file: A readable picture.
        captions: At least one, none empty; a lone "" where captions were not asked for.
        width: In pixels, as it is meant to be seen.
        height: As well.
        digest: SHA-256 of the file, 64 hex digits.
    """

    file: Path
    captions: tuple[str, ...]
    width: int
    height: int
    digest: str

    @property
    def caption(self) -> str:
        """The first of them, its own name so to say."""
        return self.captions[0]


def read_pictures(
    folder: Path, *, prompt: str | None = None, captions: bool = True
) -> list[Picture]:
    """Read all pictures in a folder and below, in the order of their names.

    Args:
        folder: With metadata.jsonl (its rows say which pictures count, several of one picture are
            captions of it), or .txt files, or neither.
        prompt: The caption of pictures without one.
        captions: Whether captions are read at all.

    Raises:
        DataError: no folder or no pictures in it, or bad ones: files that cannot be read and
            pictures without caption, all of them with the reason.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", hint="give a folder of pictures")
    problems: list[str] = []
    texts = _metadata(folder, problems) if captions else None
    files = list(texts) if texts is not None else sorted(_files(folder))
    if not files and not problems:
        raise DataError(f"{folder}: no pictures in it", hint=f"they end in {', '.join(SUFFIXES)}")
    found = []
    for file in files:
        try:
            found_captions = _captions(file, texts, prompt) if captions else ("",)
            width, height = upright_size(file)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except (FormatError, UsageError) as e:
            problems.append(e.message)
        except ValueError as e:
            problems.append(f"{file}: {e}")
        except OSError as e:
            problems.append(f"{file}: {e.strerror}")
        else:
            found.append(
                Picture(
                    file=file, captions=found_captions, width=width, height=height, digest=digest
                )
            )
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError("\n  ".join([f"{folder}: {count}:", *problems]), hint=HINT)
    return found


def require_colour(name: str) -> str:
    """Return `name` if it is a colour; UsageError if not."""
    try:
        ImageColor.getrgb(name)
    except ValueError as e:
        raise UsageError(
            f"data.background: {name!r} is no colour", hint='for instance "white" or "#ff8000"'
        ) from e
    return name


def hold_back(pictures: Sequence[Picture], share: float) -> tuple[list[Picture], list[Picture]]:
    """Return pictures to learn from and those to validate on, by a hash of each.

    So more pictures do not move the others from one to the other; a picture that is there twice is
    on one side only.
    """
    digests = sorted(
        {p.digest for p in pictures}, key=lambda d: hashlib.sha256(d.encode()).digest()
    )
    held = set(digests[: round(share * len(digests))])
    return (
        [p for p in pictures if p.digest not in held],
        [p for p in pictures if p.digest in held],
    )


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
            yield file


def _captions(
    file: Path, texts: dict[Path, list[str]] | None, prompt: str | None
) -> tuple[str, ...]:
    found = texts[file] if texts is not None else []
    beside = file.with_suffix(".txt")
    if texts is None and beside.is_file():
        try:
            found = [beside.read_text(encoding="utf-8-sig")]
        except UnicodeDecodeError as e:
            raise ValueError(f"{beside.name} is not UTF-8 text") from e
    if not found and prompt is None:
        raise ValueError("no caption")
    captions = tuple(" ".join(text.split()) for text in found) or (prompt or "",)
    if not all(captions):
        raise ValueError("its caption is empty")
    return captions


def _metadata(folder: Path, problems: list[str]) -> dict[Path, list[str]] | None:
    """Return the captions of metadata.jsonl by file, in its order; None if there is none."""
    path = folder / METADATA
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        problems.append(f"{path}: cannot be read: {e}")
        return {}
    texts: dict[Path, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            file, text = _row(folder, line)
            if text in texts.setdefault(file, []):
                raise ValueError(f"{file.name} has this caption in an earlier row")
            texts[file].append(text)
        except (ValueError, RecursionError) as e:
            problems.append(f"{path}:{number}: {e}")
    return texts


def _row(folder: Path, line: str) -> tuple[Path, str]:
    row = json.loads(line)
    name, text = (row.get("file_name"), row.get("text")) if isinstance(row, dict) else (None, None)
    if not isinstance(name, str) or not name or not isinstance(text, str):
        raise ValueError('must be an object with the strings "file_name" and "text"')
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise ValueError(f"{name!r} is not a file in this folder")
    return folder / name, text
