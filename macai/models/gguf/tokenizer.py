"""Rebuild a Hugging Face tokenizer from GGUF metadata: byte-level BPE and sentencepiece BPE.

Text is matched against control and user-defined tokens first, as llama.cpp does with
`parse_special`; the rest goes through the model. Of chat templates only the unnamed one is kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from macai.errors import FormatError, ModelError
from macai.files import write_json
from macai.models.gguf.metadata import Metadata
from macai.models.gguf.pretokenizers import PRE_TOKENIZERS
from macai.models.gguf.reader import GGUFFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGUF's `tokenizer.ggml.token_type`."""

SPECIAL = (UNKNOWN, CONTROL)

MAX_TOKEN_LENGTH = 1024
"""In characters; the longest of known models are runs of some hundred spaces."""

SPACE = "\u2581"
"""sentencepiece's letter for a space."""


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


def write_tokenizer(
    gguf: GGUFFile, vocabulary: Vocabulary, folder: Path, *, max_length: int
) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    Raises:
        FormatError: merges or scores do not fit the tokens.
        ModelError: a kind of tokenizer or of pre-tokenizer that is not known.
    """
    metadata = Metadata(gguf, "tokenizer.ggml.")
    kind = metadata.text("model")
    builders = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if kind not in builders:
        raise ModelError(
            f"{gguf.path}: a tokenizer of kind {kind!r} is not supported",
            hint=f"{' and '.join(builders)} are",
        )
    tokenizer, add_bos = builders[kind](gguf, metadata, vocabulary)
    _add_special_tokens(tokenizer, vocabulary)
    add_bos = metadata.flag("add_bos_token", default=add_bos)
    add_eos = metadata.flag("add_eos_token", default=False)
    _add_ends(gguf, tokenizer, vocabulary, add_bos=add_bos, add_eos=add_eos)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = _tokenizer_config(gguf, vocabulary, add_bos=add_bos, add_eos=add_eos)
    write_json(folder / "tokenizer_config.json", config | {"model_max_length": max_length})


def _byte_level_bpe(
    gguf: GGUFFile, metadata: Metadata, vocabulary: Vocabulary
) -> tuple[Tokenizer, bool]:
    pre = metadata.text("pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise ModelError(
            f"{gguf.path}: pre-tokenizer {pre!r} is not known",
            hint=f"known are {', '.join(PRE_TOKENIZERS)}; see macai/models/gguf/pretokenizers.py",
        )
    words = PRE_TOKENIZERS[pre]
    merges = [_merge(gguf, text, vocabulary) for text in metadata.texts("merges")]
    model = models.BPE(vocabulary.ids, merges, ignore_merges=words.ignore_merges)
    tokenizer = Tokenizer(model)
    if words.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = words.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, words.add_bos


def _merge(gguf: GGUFFile, text: str, vocabulary: Vocabulary) -> tuple[str, str]:
    """Split `a b`; the first letter may itself be a space."""
    left, space, right = text[1:].partition(" ")
    left = text[:1] + left
    if not space or any(t not in vocabulary.ids for t in (left, right, left + right)):
        raise FormatError(
            f"{gguf.path}: merge {text!r} is not of two tokens that make a third",
            hint="the file is damaged, or its vocabulary was cut",
        )
    return left, right


def _sentencepiece_bpe(
    gguf: GGUFFile, metadata: Metadata, vocabulary: Vocabulary
) -> tuple[Tokenizer, bool]:
    scores = metadata.numbers("scores", len(vocabulary.tokens))
    unk = vocabulary.special.unk
    model = models.BPE(
        vocabulary.ids,
        merges_of_scores(vocabulary, scores),
        unk_token=None if unk is None else vocabulary.tokens[unk],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = metadata.flag("add_space_prefix", default=True)
    before = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return tokenizer, True


def merges_of_scores(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Return the merges, best first, that do what sentencepiece does with scores.

    sentencepiece joins the two neighbours whose joint text is the token of the highest score, the
    leftmost of equals: so every way to cut a token in two tokens is a merge of that token's score.
    In which order the cuts of one token come makes no difference to any text.
    """
    mergeable = {
        token: scores[i]
        for i, token in enumerate(vocabulary.tokens)
        if vocabulary.types[i] in (NORMAL, UNUSED)
    }
    order = sorted(mergeable, key=lambda token: -mergeable[token])
    return [
        (token[:cut], token[cut:])
        for token in order
        for cut in range(1, len(token))
        if token[:cut] in mergeable and token[cut:] in mergeable
    ]


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    kinds = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in kinds if k in SPECIAL]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in kinds if k == USER_DEFINED])


def _add_ends(
    gguf: GGUFFile, tokenizer: Tokenizer, vocabulary: Vocabulary, *, add_bos: bool, add_eos: bool
) -> None:
    special = vocabulary.special
    if add_bos and special.bos is None:
        raise FormatError(f"{gguf.path}: texts should start with a bos token, but there is none")
    ends = {"bos": special.bos if add_bos else None, "eos": special.ends[0] if add_eos else None}
    named = [(vocabulary.tokens[i], i) for i in ends.values() if i is not None]
    if not named:
        return
    bos = [named[0][0]] if add_bos else []
    eos = [named[-1][0]] if add_eos else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*bos, "$A", *eos],
        pair=[*bos, "$A", *eos, *(f"{t}:1" for t in bos), "$B:1", *(f"{t}:1" for t in eos)],
        special_tokens=list(dict(named).items()),
    )


def _special_ids(metadata: Metadata, size: int) -> SpecialIds:
    # llama.cpp's own ids for a sentencepiece model that does not name them.
    defaults = {"unknown": 0, "bos": 1, "eos": 2} if metadata.text("model") == "llama" else {}

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


def _tokenizer_config(
    gguf: GGUFFile, vocabulary: Vocabulary, *, add_bos: bool, add_eos: bool
) -> dict[str, Any]:
    special = vocabulary.special
    roles = {
        "bos_token": special.bos,
        "eos_token": special.ends[0],
        "unk_token": special.unk,
        "pad_token": special.pad,
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
    }
    # A role that is left out gets a default from transformers; null says that there is none.
    config |= {role: None if i is None else vocabulary.tokens[i] for role, i in roles.items()}
    template = Metadata(gguf, "tokenizer.").text("chat_template", "")
    if template:
        config["chat_template"] = template
    return config
