"""The contract of a converter: one file in `converters/`, ending in `CONVERTER = Converter(...)`.

`macai.catalog` finds and loads the files; this module only says what they offer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Dtype = Literal["keep", "float32", "float16", "bfloat16"]
"""The weights' type on disk; `keep` leaves exact affine 4- and 8-bit weights as they are."""

FloatType = Literal["float32", "float16", "bfloat16"]

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done so far, of how many)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """One foreign format that macai can read.

    Attributes:
        name: The word a user types, as in `macai convert --from gguf`.
        summary: One line for `macai convert --help` and the docs.
        matches: Whether a path looks like this format, by its name and first bytes; never raises.
        convert: Reads the source and writes a Hugging Face model directory (config.json,
            model.safetensors, tokenizer.json, tokenizer_config.json, generation_config.json) into
            an existing empty folder. Raises FormatError or ModelError.
    """

    name: str
    summary: str
    matches: Callable[[Path], bool]
    convert: Callable[[Path, Path, Dtype, Progress], None]
