"""Rebuild the two kinds of sentencepiece tokenizers: BPE and unigram.

That spaces are written as SPACE, before their words, is taken for granted: no key of GGUF says that
they are not.
"""

import itertools
import re
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from macai.errors import FormatError
from macai.models.gguf.metadata import Metadata
from macai.models.gguf.reader import GGUFFile
from macai.models.gguf.vocabulary import BYTE, NORMAL, UNUSED, USER_DEFINED, Vocabulary

SPACE = "\u2581"
"""sentencepiece's letter for a space."""

Ends = set[Literal["bos", "eos"]]
"""What a text gets at its ends, where the metadata does not say."""


def sentencepiece_bpe(
    gguf: GGUFFile, metadata: Metadata, vocabulary: Vocabulary
) -> tuple[Tokenizer, Ends]:
    """Rebuild sentencepiece's BPE; FormatError when scores do not fit the tokens."""
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
    tokenizer.decoder = _decoder(prefix=prefix)
    return tokenizer, {"bos"}


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


def sentencepiece_unigram(
    gguf: GGUFFile, metadata: Metadata, vocabulary: Vocabulary
) -> tuple[Tokenizer, Ends]:
    """Rebuild sentencepiece's unigram model; defaults are those of llama.cpp.

    Letters with marks may normalise otherwise than in sentencepiece: `normalizers.Precompiled`
    looks up a letter with all its marks, sentencepiece the longest text that has a rule.

    Raises:
        FormatError: scores or normaliser are damaged, or nothing stands for an unknown letter.
    """
    unk = vocabulary.special.unk
    if unk is None:
        raise FormatError(
            f"{gguf.path}: a unigram tokenizer without an unknown token",
            hint="tokenizer.ggml.unknown_token_id is missing",
        )
    pieces = _unigram_pieces(vocabulary, metadata.numbers("scores", len(vocabulary.tokens)))
    tokenizer = Tokenizer(models.Unigram(pieces, unk, byte_fallback=BYTE in vocabulary.types))
    prefix = metadata.flag("add_space_prefix", default=False)
    trim = metadata.flag("remove_extra_whitespaces", default=False)
    start = SPACE if prefix else ""
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Prepend(start)] if start else []),
            *_charsmap(metadata),
            *(_trimming(start) if trim else []),
            normalizers.Replace(" ", SPACE),
            *([normalizers.Replace(Regex(f"{SPACE}+\\z"), "")] if trim else []),
        ]
    )
    cuts = _cuts(vocabulary)
    if cuts:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(cuts), "merged_with_previous")
    tokenizer.decoder = _decoder(prefix=prefix)
    return tokenizer, {"eos"}


def _unigram_pieces(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, float]]:
    """Return each token's text and score as the library wants them.

    Its penalty for an unknown letter is below the lowest score of all tokens, sentencepiece's below
    that of normal ones: no other may be lower. It knows no unused tokens: their texts get a space,
    which no normalised text holds.
    """
    kinds = list(zip(vocabulary.tokens, vocabulary.types, scores, strict=True))
    highest = max([0.0, *(score for _, kind, score in kinds if kind == NORMAL)])
    return [
        (f"{token} " if kind == UNUSED else token, score if kind == NORMAL else highest)
        for token, kind, score in kinds
    ]


def _charsmap(metadata: Metadata) -> list[normalizers.Normalizer]:
    content = metadata.octets("precompiled_charsmap")
    if not content:
        return []
    try:
        return [normalizers.Precompiled(content)]
    except Exception as e:  # the library raises no narrower one
        raise FormatError(f"{metadata.path}: its normaliser cannot be read: {e}") from e


def _trimming(start: str) -> list[normalizers.Normalizer]:
    """Return what leaves no space after `start` and one between words; the end is not touched."""
    return [
        normalizers.Replace(Regex(rf"\A{start} +"), start),
        normalizers.Replace(Regex(" {2,}"), " "),
    ]


def _cuts(vocabulary: Vocabulary) -> str:
    """Return a pattern after whose matches a text is cut, so that letters stay letters.

    The library would take the letters of a byte's name, such as `<0x41>`, for the byte, and those
    of `</s>`, where the normaliser made them, for the token. A cut between two letters that are
    neighbours in no piece changes nothing else.
    """
    kinds = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    neighbours = {
        pair
        for token, kind in kinds
        if kind in (NORMAL, USER_DEFINED)
        for pair in itertools.pairwise(token)
    }
    cuts = []
    for name in (token for token, kind in kinds if kind not in (NORMAL, USER_DEFINED, UNUSED)):
        pairs = enumerate(itertools.pairwise(name), 1)
        at = next((at for at, pair in pairs if pair not in neighbours), None)
        if at is not None:
            cuts.append(f"{re.escape(name[:at])}(?={re.escape(name[at:])})")
    return "|".join(cuts)


def _decoder(*, prefix: bool) -> decoders.Decoder:
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    return decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
