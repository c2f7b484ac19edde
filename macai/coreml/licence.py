"""The licence of a model: its files, and its name, as the model's folder has them."""

import re
from pathlib import Path

_FILES = re.compile(r"(licen[cs]e|copying|notice)\b", re.IGNORECASE)
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"^(license\w*):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_CARD_BYTES = 1 << 16


def licence_files(folder: Path) -> list[Path]:
    """Return the files that go along with a model everywhere: LICENSE, NOTICE and the like."""
    return sorted(f for f in folder.iterdir() if f.is_file() and _FILES.match(f.name))


def licence_name(folder: Path) -> str:
    """Return what a model's card, README.md, calls its licence; "" if it says nothing.

    Hugging Face's cards begin with YAML: `license: apache-2.0`, or `license: other` and a
    `license_name`.
    """
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with card.open(encoding="utf-8", errors="replace") as f:
        matter = _FRONT_MATTER.match(f.read(_CARD_BYTES))
    keys = dict(_KEY.findall(matter[1] if matter else ""))
    name = keys.get("license", "").strip("\"'")
    return keys.get("license_name", name).strip("\"'") if name == "other" else name
