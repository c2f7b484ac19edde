"""The emphasis of stable-diffusion-webui in a prompt: (word:1.2), ((word)), [word], BREAK.

Round brackets weigh what is in them by 1.1 or the number given, square ones by 1/1.1; nested ones
multiply. A backslash makes the next bracket or backslash literal, and is dropped before anything
else. A bracket that is never closed weighs all that follows, one that was never opened is text.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from macai.errors import UsageError

MAX_WEIGHT = 100.0
"""Above it a weight is a slip: images fall apart near 2."""

_ROUND, _SQUARE = 1.1, 1 / 1.1
_LEXEMES = re.compile(
    r"""
    \\ (?P<literal> [()\[\]\\] | )
    | (?P<open> [(\[] )
    | : \s* (?P<weight> [+-]? [.\d]+ ) \s* \)
    | : \s* (?P<absurd> [+-]? (?: nan | inf(?:inity)? | [.\d]+ e [+-]? \d+ ) ) \s* \)
    | (?P<close> [)\]] )
    | (?P<text> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_ESCAPED = re.compile(r"[()\[\]\\]")


@dataclass(frozen=True, slots=True)
class Segment:
    """Text of one weight."""

    text: str
    weight: float = 1.0


def parse_prompt(prompt: str) -> list[list[Segment]]:
    """Return the segments of a prompt by section; BREAK begins a new section.

    Segments side by side have different weights, and only a section's sole one may be empty.

    Raises:
        UsageError: a weight that is no number, not finite or beyond 100.
    """
    sections = _Sections()
    for lexeme in _LEXEMES.finditer(prompt):
        kind, text = lexeme.lastgroup, lexeme.group(lexeme.lastgroup or 0)
        if kind == "literal":
            sections.add(text)
        elif kind == "open":
            sections.open(text)
        elif kind == "weight" and sections.within_round():
            sections.close("(", _number(text, lexeme.group()))
        elif kind == "absurd" and sections.within_round():
            raise _absurd(text, lexeme.group())
        elif kind == "close" and sections.close("(" if text == ")" else "["):
            pass
        else:
            sections.add_breaking(lexeme.group())
    return sections.finish()


def render_prompt(sections: Sequence[Sequence[Segment]]) -> str:
    """Write sections so that `parse_prompt` reads them back."""
    rendered = ["".join(map(_render, section)) for section in sections]
    text = rendered[0] if rendered else ""
    for before, after in itertools.pairwise(rendered):
        # White space around BREAK goes with it; a lone backslash is nothing, and keeps it.
        text += "\\ BREAK" if before[-1:].isspace() else " BREAK"
        text += f" \\{after}" if after[:1].isspace() else f" {after}"
    return text


def _render(segment: Segment) -> str:
    text = _ESCAPED.sub(r"\\\g<0>", segment.text)
    text = re.sub(r"\bBREAK\b", r"B\\REAK", text)
    if segment.weight == 1.0:
        return text
    return f"({text}:{np.format_float_positional(segment.weight, trim='-')})"


class _Sections:
    """What was read so far: pieces of text with their weights, None for a BREAK."""

    def __init__(self) -> None:
        self._pieces: list[tuple[str, float] | None] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, text: str) -> None:
        self._pieces.append((text, 1.0))

    def add_breaking(self, text: str) -> None:
        for number, part in enumerate(_BREAK.split(text)):
            if number:
                self._pieces.append(None)
            self.add(part)

    def open(self, bracket: str) -> None:
        self._open[bracket].append(len(self._pieces))

    def within_round(self) -> bool:
        return bool(self._open["("])

    def close(self, bracket: str, weight: float | None = None) -> bool:
        """Weigh what was added since the last such bracket; false where there was none."""
        if not self._open[bracket]:
            return False
        start = self._open[bracket].pop()
        factor = weight if weight is not None else _ROUND if bracket == "(" else _SQUARE
        for i, piece in enumerate(self._pieces[start:], start):
            if piece is not None:
                self._pieces[i] = (piece[0], piece[1] * factor)
        return True

    def finish(self) -> list[list[Segment]]:
        for bracket in "([":
            while self.close(bracket):
                pass
        sections: list[list[Segment]] = [[]]
        for piece in self._pieces:
            if piece is None:
                sections.append([])
            elif piece[0]:
                _join(sections[-1], Segment(*piece))
        return [section or [Segment("")] for section in sections]


def _join(section: list[Segment], segment: Segment) -> None:
    if not abs(segment.weight) <= MAX_WEIGHT:
        raise _absurd(f"{segment.weight:.6g}", segment.text)
    if section and section[-1].weight == segment.weight:
        section[-1] = Segment(section[-1].text + segment.text, segment.weight)
    else:
        section.append(segment)


def _number(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not abs(weight) <= MAX_WEIGHT:
        raise _absurd(text, where)
    return weight


def _absurd(weight: str, where: str) -> UsageError:
    return UsageError(
        f"the prompt's weight {weight[:40]} in {where[:60]!r} is no number from -100 to 100",
        hint="weights are like (word:1.2); a literal bracket is written \\( or \\)",
    )
