"""What Apple's Swift package makes of a prompt: its BPETokenizer, which is not CLIP's.

Facts from apple/ml-stable-diffusion e12202c, swift/StableDiffusion/tokenizer: words end at spaces
only, letters are grapheme clusters and not bytes, equal means canonically equivalent, a token that
is not in vocab.json is the end token, and a merge whose line in merges.txt starts with "#" is taken
for a comment.
"""

import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from macai.diffusion.tokenizer.clusters import clusters
from macai.diffusion.tokenizer.vocabulary import END, WORD_END, Vocabulary

_TRIMMED = (
    "".join(map(chr, (0x9, 0xA, 0xB, 0xC, 0xD, 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200C))))
    + "\u2028\u2029\u202f\u205f\u3000"
)
"""CoreFoundation's whitespacesAndNewlines: U+200B, which Unicode calls no space, is one of them."""


@dataclass(frozen=True, slots=True)
class WordDifference:
    """A word between spaces, and its tokens in Python and in Swift."""

    word: str
    hf: tuple[str, ...]
    swift: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """In what a prompt differs on a device; false where in nothing.

    Attributes:
        words: The words whose tokens differ, in order, each once.
        end_cut: The prompt is too long, and Swift cuts its end token off as well.
        padding: Short prompts are padded with another token.
    """

    words: tuple[WordDifference, ...] = ()
    end_cut: bool = False
    padding: bool = False

    def __bool__(self) -> bool:
        return bool(self.words) or self.end_cut or self.padding


class SwiftTokenizer:
    """Apple's BPETokenizer over the vocab.json and merges.txt that `vocabulary` writes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = vocabulary.ids
        self._unknown = vocabulary.ids.get(END, 0)
        self._ranks = {
            pair: rank for rank, pair in enumerate(vocabulary.merges) if not pair[0].startswith("#")
        }

    def words(self, text: str) -> list[str]:
        """Return the words of a text as they are written."""
        words = [""]
        for cluster in clusters(text.strip(_TRIMMED)):
            if cluster == " ":  # a space with an accent on it ends no word
                words.append("")
            else:
                words[-1] += cluster
        return [word for word in words if word]

    def tokens(self, word: str) -> list[str]:
        """Return the tokens of one of `words`; those that are none as they stand."""
        # Scalar by scalar: Swift has no rule for a sigma at the end of a word.
        lower = "".join(letter.lower() for letter in word)
        letters = [unicodedata.normalize("NFC", cluster) for cluster in clusters(lower)]
        letters[-1] += WORD_END
        return _merge(letters, self._ranks)

    def token_id(self, token: str) -> int:
        """Return the id of a token; the end token's for what is none."""
        return self._ids.get(token, self._unknown)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
        return [self.token_id(t) for word in self.words(text) for t in self.tokens(word)]


def _merge(letters: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Join the pair of the lowest rank, wherever it stands, until no pair has one."""
    tokens = list(letters)
    while True:
        pairs = [p for p in itertools.pairwise(tokens) if p in ranks]
        if not pairs:
            return tokens
        best = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        for token in tokens:
            if joined and (joined[-1], token) == best:
                joined[-1] += token
            else:
                joined.append(token)
        tokens = joined
