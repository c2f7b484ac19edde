"""CLIP's byte-pair vocabulary: as shipped, and the two files it is exchanged in."""

import functools
import gzip
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from macai.files import atomic_file

START = "<|startoftext|>"
END = "<|endoftext|>"
WORD_END = "</w>"

_SHIPPED = "clip_merges.txt.gz"
_HEADER = "#version: 0.2"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by their text, as letters that stand for bytes, and the pairs that make them.

    Attributes:
        ids: Each token's id; a token at the end of a word ends in "</w>".
        merges: Pairs of tokens that become one, the first first.
    """

    ids: dict[str, int]
    merges: list[tuple[str, str]]

    def write(self, folder: Path) -> None:
        """Write vocab.json and merges.txt, atomically, for Swift's BPETokenizer and transformers.

        Of the shipped vocabulary they are byte for byte those of openai/clip-vit-base-patch32,
        which Apple's own exporter puts into a bundle. Repositories differ in the spaces of
        vocab.json alone.
        """
        vocab = json.dumps(self.ids, ensure_ascii=False, separators=(",", ":"))
        merges = "".join(f"{line}\n" for line in (_HEADER, *map(" ".join, self.merges)))
        for name, text in (("vocab.json", vocab), ("merges.txt", merges)):
            with atomic_file(folder / name) as temporary:
                temporary.write_bytes(text.encode())  # no \r\n on any system


@functools.cache
def shipped_vocabulary() -> Vocabulary:
    """Return CLIP's own 49,408 tokens: those of SD 1.x, 2.x and XL, OpenAI's and OpenCLIP's."""
    file = importlib.resources.files("macai.diffusion.tokenizer") / _SHIPPED
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    return vocabulary_of(parse_merges(lines))


def parse_merges(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of a merges.txt; ValueError names the line that is not two tokens."""
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#version"):
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise ValueError(f"line {number} is not two tokens")
        merges.append((left, right))
    return merges


def vocabulary_of(merges: list[tuple[str, str]]) -> Vocabulary:
    """Number the tokens in CLIP's order: bytes, bytes that end a word, merges, start and end."""
    letters = letters_by_byte().values()
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    tokens += [left + right for left, right in merges]
    tokens += [START, END]
    return Vocabulary({token: number for number, token in enumerate(tokens)}, merges)


def letters_by_byte() -> dict[int, str]:
    """Return the letter for each byte as in GPT-2, those bytes first that stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(0x100 + n) for n, byte in enumerate(others)}
