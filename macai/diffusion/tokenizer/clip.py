"""The tokenizer of CLIP's text encoders, ids equal to those of transformers' CLIPTokenizer."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from macai.diffusion.tokenizer.folder import Settings, default_settings, read_folder
from macai.diffusion.tokenizer.swift import Difference, SwiftTokenizer, WordDifference
from macai.diffusion.tokenizer.vocabulary import (
    END,
    WORD_END,
    Vocabulary,
    letters_by_byte,
    shipped_vocabulary,
)
from macai.errors import FormatError, ModelError, UsageError

_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""OpenAI's CLIP, simple_tokenizer.py."""

_BYTES = {letter: bytes([byte]) for byte, letter in letters_by_byte().items()}


class ClipTokenizer:
    """Text to ids and back.

    Attributes:
        vocabulary: The byte-pair tokens without the added ones.
        start_id, end_id, pad_id: The tokens around a prompt and after it.
        max_length: Tokens of a prompt with its start and end: 77.
        size: How many rows an embedding of these ids needs.
    """

    def __init__(self, vocabulary: Vocabulary, settings: Settings) -> None:
        self.vocabulary = vocabulary
        self.max_length = settings.max_length
        self._tokenizer = _build(vocabulary, settings)
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.start_id: int = ids[settings.start.content]
        self.end_id: int = ids[settings.end.content]
        self.pad_id: int = ids[settings.padding.content]
        self.size = 1 + max(ids.values())

    @classmethod
    def shipped(cls, *, padding: str = END) -> "ClipTokenizer":
        """Return CLIP's own; `padding` is "!" for OpenCLIP's encoders (SD 2.x, the second of XL).

        A padding token is special: with "!" every "!" of a prompt is it, as in transformers.
        """
        return cls(shipped_vocabulary(), default_settings(padding=padding))

    @classmethod
    def from_folder(cls, path: Path) -> "ClipTokenizer":
        """Return the tokenizer of a folder of a diffusers model: see `folder.read_folder`."""
        vocabulary, settings = read_folder(path)
        try:
            return cls(vocabulary, settings)
        except ModelError as e:
            raise type(e)(f"{path}: {e.message}", hint=e.hint) from e

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without start, end and padding.

        Raises:
            UsageError: the text is not valid Unicode.
        """
        _require_unicode(text)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def ids(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return int32 [B, max_length]: cut and padded as diffusers does.

        That is start, tokens, end, then padding; of a long text the end stays.
        """
        rows = [self.row(self.encode(text)[: self.max_length - 2]) for text in texts]
        return np.array(rows, np.int32).reshape(-1, self.max_length)

    def row(self, ids: Sequence[int]) -> list[int]:
        """Put start, end and padding around at most max_length - 2 ids."""
        row = [self.start_id, *ids, self.end_id]
        return row + [self.pad_id] * (self.max_length - len(row))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the texts of the tokens, in letters that stand for bytes."""
        return [self._tokenizer.id_to_token(int(i)) or "" for i in ids]

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its text, or None."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words of the ids with a space after each, special tokens left out."""
        special = {self.start_id, self.end_id, self.pad_id}
        letters = "".join(self.tokens([i for i in ids if i not in special]))
        letters = letters.replace(WORD_END, " ")
        data = b"".join(_BYTES.get(letter) or letter.encode() for letter in letters)
        return data.decode(errors="replace").strip(" ")

    @functools.cached_property
    def swift(self) -> SwiftTokenizer:
        """Apple's Swift tokenizer over the same vocabulary."""
        return SwiftTokenizer(self.vocabulary)

    def swift_ids(self, texts: Sequence[str], *, padding: str = END) -> npt.NDArray[np.int32]:
        """Return int32 [B, max_length] as Apple's TextEncoder and TextEncoderXL feed them.

        A long text loses its end token. `padding` is "!" for the second encoder of XL, the end
        token for every other, also where the model was trained with another.
        """
        pad = self.swift.token_id(padding)
        rows = []
        for text in texts:
            _require_unicode(text)
            row = [self.start_id, *self.swift.encode(text), self.end_id]
            row += [pad] * (self.max_length - len(row))
            rows.append(row[: self.max_length])
        return np.array(rows, np.int32).reshape(-1, self.max_length)

    def differs(self, text: str, *, padding: str = END) -> Difference:
        """Compare the ids of `ids` and `swift_ids`; false when they are equal.

        Raises:
            UsageError: the text is not valid Unicode.
        """
        if np.array_equal(self.ids([text]), self.swift_ids([text], padding=padding)):
            return Difference()
        swift, words, length = self.swift, {}, 2
        for word in swift.words(text):
            hf, tokens = self.encode(word), swift.tokens(word)
            length += len(tokens)
            if hf != [swift.token_id(token) for token in tokens]:
                words[word] = WordDifference(word, tuple(self.tokens(hf)), tuple(tokens))
        return Difference(
            words=tuple(words.values()),
            end_cut=length > self.max_length,
            padding=length < self.max_length and swift.token_id(padding) != self.pad_id,
        )

    def write(self, folder: Path) -> None:
        """Write the two files of the vocabulary: see `Vocabulary.write`."""
        self.vocabulary.write(folder)


def _build(vocabulary: Vocabulary, settings: Settings) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=vocabulary.merges,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            unk_token=settings.unknown.content,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for number, token in settings.added:
        tokenizer.add_tokens([token])
        _require_id(tokenizer, token, number)
    tokenizer.add_tokens([settings.start, settings.end, settings.unknown, settings.padding])
    return tokenizer


def _require_id(tokenizer: Tokenizer, token: AddedToken, number: int) -> None:
    given = tokenizer.token_to_id(token.content)
    if given != number:
        raise FormatError(
            f"the added token {token.content[:40]!r} has id {number}; it would be {given}"
        )


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UsageError(f"the prompt is not valid Unicode at character {e.start + 1}") from e
