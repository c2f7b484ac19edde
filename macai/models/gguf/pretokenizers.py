"""How each `tokenizer.ggml.pre` cuts text into words, before byte-level BPE merges inside them."""

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

DIGIT = r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST
SEED_CODER = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class Words:
    """One way to cut text into words.

    Attributes:
        patterns: Each in turn cuts what the ones before it left; a match is a word.
        ignore_merges: Whether a word that is a token itself is that token, whatever the merges say.
        add_bos: Whether a text starts with the bos token, where the metadata does not say.
        composed: Whether letters and their accents are composed first (NFC).
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """Return what cuts the text and maps its bytes to the letters BPE merges."""
        steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in self.patterns]
        return pre_tokenizers.Sequence(
            [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )


_DIGITS = Words((DIGIT, GPT2))
_LLAMA3 = Words((LLAMA3,), ignore_merges=True, add_bos=True)
# llama.cpp does not compose; Qwen's own tokenizer does, and transformers for every qwen2 model.
_QWEN2 = Words((QWEN2,), composed=True)

PRE_TOKENIZERS = {
    "default": Words(DEFAULT),
    "deepseek-r1-qwen": _QWEN2,
    "falcon3": _LLAMA3,
    "gpt-2": Words((GPT2,)),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "refact": _DIGITS,
    "seed-coder": Words((SEED_CODER,)),
    "smaug-bpe": Words((LLAMA3,)),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "tekken": Words((TEKKEN,), ignore_merges=True, add_bos=True),
}
"""Those proven against llama.cpp, or for tekken against Mistral's own pattern."""
