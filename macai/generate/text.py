"""Token ids in, text out as early as it is certain; joined it is what decoding all ids gives."""

from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of `ids` without special tokens, spaces left as they are."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


class TextStream:
    """Decodes one id at a time and never gives half a character.

    What an id adds is the difference between decoding the ids since the text before last with and
    without it: sentencepiece decoders strip a leading space, so no id can be decoded alone.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._given: list[int] = []
        self._given_text = ""
        self._waiting: list[int] = []

    def add(self, token_id: int) -> str:
        """Return the text that `token_id` completes; empty in the middle of a character."""
        self._waiting.append(token_id)
        text = self._new_text()
        # A special token has no text: it waits, for the next id may need what is before it.
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._given, self._waiting = self._waiting, []
        self._given_text = decode(self._tokenizer, self._given)
        return text

    def flush(self) -> str:
        """Return what is left at the end; bytes that are no character become U+FFFD."""
        text = self._new_text() if self._waiting else ""
        self._given, self._given_text, self._waiting = [], "", []
        return text

    def _new_text(self) -> str:
        whole = decode(self._tokenizer, self._given + self._waiting)
        if whole.startswith(self._given_text):
            return whole[len(self._given_text) :]
        # Byte-fallback decoders turn a whole run of bytes into U+FFFD when its end is broken.
        return decode(self._tokenizer, self._waiting)
