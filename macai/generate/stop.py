"""End a reply at given strings, wherever the pieces of text are cut."""

from collections.abc import Sequence

from macai.errors import UsageError


class StopMatcher:
    """Passes text on, except a stop string and what could still become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise UsageError("a stop string is empty", hint="leave --stop out")
        self._stop = tuple(stop)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Return the text that is certain now, and whether a stop string was completed."""
        text = self._held + text
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            # The one completed first, so that it does not matter how the text was cut.
            self._held = ""
            return text[: min(found)[1]], True
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return what was held back, once no more text comes."""
        text, self._held = self._held, ""
        return text

    def _possible_start(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = max((len(s) - 1 for s in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0
