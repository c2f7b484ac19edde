"""Questions and answers from Python's own docstrings: real text of very different lengths.

    python -m benchmarks.training.docstrings FOLDER [--rows 1600] [--valid 100]

Which rows there are follows from the Python that runs it: functions, methods and classes of the
standard library that say what they do, in an order that hashes decide. Few are long: half of the
rows have fewer than 80 tokens of SmolLM2, and one in twenty more than 240.
"""

import argparse
import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
LEAST = 20  # characters: less says nothing
MOST = 1600  # about 500 tokens with the question
_LEFT_OUT = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> None:
    """Write FOLDER/train.jsonl and FOLDER/valid.jsonl."""
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--rows", type=int, default=1600)
    options.add_argument("--valid", type=int, default=100)
    chosen = options.parse_args()
    write_splits(chosen.folder, rows=chosen.rows, valid=chosen.valid)


def write_splits(
    folder: Path, *, rows: int, valid: int, test: int = 0, library: Path = LIBRARY
) -> None:
    """Write rows to learn from, and others to check with."""
    lines = iter([json.dumps({"messages": m}) + "\n" for m in conversations(library)])
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", rows), ("valid", valid), ("test", test)):
        part = list(islice(lines, count))
        if len(part) < count:
            raise SystemExit(f"this Python's library has too few docstrings for {count} of {name}")
        if count:
            (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")


def conversations(library: Path = LIBRARY) -> list[list[dict[str, str]]]:
    """Return a question and an answer of each docstring, in the order of their hashes."""
    said: dict[str, str] = {}
    for text, what in _documented(library):
        said.setdefault(text, what)  # a docstring that several have is there once
    order = sorted(said, key=lambda text: hashlib.sha256(text.encode()).digest())
    return [
        [
            {"role": "user", "content": f"What does `{said[text]}` do?"},
            {"role": "assistant", "content": text},
        ]
        for text in order
    ]


def _documented(library: Path) -> Iterator[tuple[str, str]]:
    """Yield docstrings and what has them: a function with its arguments, or a class."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if _LEFT_OUT.isdisjoint(parts):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue
            yield from _within(tree, ".".join(parts).removesuffix(".__init__"))


def _within(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            full = f"{name}.{child.name}"
            text = ast.get_docstring(child) or ""
            if LEAST <= len(text) <= MOST:
                arguments = f"({ast.unparse(child.args)})" if isinstance(child, _FUNCTIONS) else ""
                yield text, full + arguments
            yield from _within(child, full)


if __name__ == "__main__":
    main()
