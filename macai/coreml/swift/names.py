"""Swift's words: identifiers made of model names, and literals that cannot break out."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

# Capitalised keywords, what the package itself declares, and the modules around it: a module that
# is called like a type in it cannot be named any more.
_TAKEN = """
    Any Self Type Protocol Swift Foundation CoreML Dispatch Tokenizers Transformers Hub Jinja
    SwiftUI UIKit AppKit XCTest Testing Contract LanguageModel Message Token Finish Manifest Engine
    Call Sampler ModelError ModelFunction ModelVariant AdapterFile AdapterSlot GenerationOptions
    LoadingStage Chat Bench Benchmark Parameter
"""


def module_name(name: str) -> str:
    """Return a Swift module's name for a model's: "Qwen/Qwen3-0.6B" becomes Qwen3_0_6B.

    Words begin with a capital; an underscore is left only between digits.
    """
    own = name.rstrip("/").rpartition("/")[2]
    plain = unicodedata.normalize("NFKD", own).encode("ascii", "ignore").decode()
    words = [word[:1].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", plain)]
    joined = re.sub(r"(?<=\d) (?=\d)", "_", " ".join(words)).replace(" ", "")
    if not joined[:1].isalpha():
        joined = f"Model{joined}"
    return f"{joined}Model" if joined in _TAKEN.split() else joined


def string(value: str) -> str:
    """Return a Swift string literal: on one line, without interpolation, whatever it holds."""
    return f'"{"".join(map(_character, value))}"'


def _character(character: str) -> str:
    if character in '\\"':
        return f"\\{character}"
    if "\ud800" <= character <= "\udfff":
        return "\\u{fffd}"  # half a surrogate pair is no character in Swift
    return character if character.isprintable() else f"\\u{{{ord(character):x}}}"


def optional(value: object) -> str:
    """Return the literal of a string, an int or None."""
    if value is None:
        return "nil"
    return string(value) if isinstance(value, str) else number(value)


def number(value: object) -> str:
    """Return an integer literal.

    Raises:
        TypeError: it is no int, so it must not be written into code.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"not an integer: {value!r}")
    return str(value)


def array(items: Sequence[str]) -> str:
    """Return an array literal of literals."""
    return f"[{', '.join(items)}]"


def dictionary(items: Mapping[str, str]) -> str:
    """Return a dictionary literal of strings to literals."""
    pairs = ", ".join(f"{string(key)}: {value}" for key, value in items.items())
    return f"[{pairs or ':'}]"
