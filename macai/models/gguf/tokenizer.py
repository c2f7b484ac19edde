"""Rebuild a Hugging Face tokenizer from GGUF metadata: byte-level BPE and both of sentencepiece.

Text is matched against control and user-defined tokens first, as llama.cpp does with
`parse_special`; the rest goes through the model. Of chat templates only the unnamed one is kept.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from macai.errors import FormatError, ModelError
from macai.files import write_json
from macai.models.gguf.metadata import Metadata
from macai.models.gguf.pieces import Ends, sentencepiece_bpe, sentencepiece_unigram
from macai.models.gguf.pretokenizers import PRE_TOKENIZERS
from macai.models.gguf.reader import GGUFFile
from macai.models.gguf.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

SPECIAL = (UNKNOWN, CONTROL)


def _byte_level_bpe(
    gguf: GGUFFile, metadata: Metadata, vocabulary: Vocabulary
) -> tuple[Tokenizer, Ends]:
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
    return tokenizer, {"bos"} if words.add_bos else set()


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


BUILDERS = {"gpt2": _byte_level_bpe, "llama": sentencepiece_bpe, "t5": sentencepiece_unigram}
"""What `tokenizer.ggml.model` says a tokenizer is."""


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
    if kind not in BUILDERS:
        raise ModelError(
            f"{gguf.path}: a tokenizer of kind {kind!r} is not supported",
            hint=f"{', '.join(BUILDERS)} are",
        )
    tokenizer, ends = BUILDERS[kind](gguf, metadata, vocabulary)
    _add_special_tokens(tokenizer, vocabulary)
    add_bos = metadata.flag("add_bos_token", default="bos" in ends)
    add_eos = metadata.flag("add_eos_token", default="eos" in ends)
    _add_ends(gguf, tokenizer, vocabulary, add_bos=add_bos, add_eos=add_eos)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = _tokenizer_config(gguf, vocabulary, add_bos=add_bos, add_eos=add_eos)
    write_json(folder / "tokenizer_config.json", config | {"model_max_length": max_length})


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
