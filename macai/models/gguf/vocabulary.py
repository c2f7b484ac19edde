"""The tokens of a GGUF file: their texts, their types and which of them have a role."""

from dataclasses import dataclass

from macai.errors import FormatError
from macai.models.gguf.metadata import Metadata
from macai.models.gguf.reader import GGUFFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGUF's `tokenizer.ggml.token_type`."""

MAX_TOKEN_LENGTH = 1024
"""In characters; the longest of known models are runs of some hundred spaces."""

DEFAULT_IDS = {
    "llama": {"unknown": 0, "bos": 1, "eos": 2},
    "t5": {"padding": 0, "eos": 1, "unknown": 2},
}
"""llama.cpp's own ids for a sentencepiece model, by kind, that does not name them."""


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """The tokens with a role.

    Attributes:
        bos, unk, pad: None where the model has none.
        ends: Every id that ends a reply; the first is the eos token.
    """

    bos: int | None
    unk: int | None
    pad: int | None
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Every token's text and type, and the ids with a role."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int]
    special: SpecialIds


def read_vocabulary(gguf: GGUFFile) -> Vocabulary:
    """Read and check the tokens; FormatError on two tokens of one text or an id out of range."""
    metadata = Metadata(gguf, "tokenizer.ggml.")
    tokens = [t or f"[EMPTY_{i}]" for i, t in enumerate(metadata.texts("tokens"))]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(t for i, t in enumerate(tokens) if ids[t] != i)
        raise FormatError(f"{gguf.path}: two tokens have the text {twice!r}")
    if max(map(len, tokens), default=0) > MAX_TOKEN_LENGTH:
        raise FormatError(f"{gguf.path}: a token is longer than {MAX_TOKEN_LENGTH} characters")
    types = [NORMAL] * len(tokens)
    if metadata.has("token_type"):
        types = metadata.numbers("token_type", len(tokens))
    return Vocabulary(tokens, types, ids, _special_ids(metadata, len(tokens)))


def _special_ids(metadata: Metadata, size: int) -> SpecialIds:
    defaults = DEFAULT_IDS.get(metadata.text("model"), {})

    def read(name: str) -> int | None:
        key = f"{name}_token_id"
        if metadata.has(key):
            return metadata.index(key, size)
        return defaults.get(name) if defaults.get(name, 0) < size else None

    ends = [read(name) for name in ("eos", "eot", "eom")]
    known = tuple(dict.fromkeys(i for i in ends if i is not None))
    if not known:
        raise FormatError(
            f"{metadata.path}: no token ends a reply: tokenizer.ggml.eos_token_id is missing"
        )
    return SpecialIds(read("bos"), read("unknown"), read("padding"), known)
