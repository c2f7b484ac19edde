"""Read training rows: each is checked, and all bad ones are reported at once."""

import hashlib
import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from macai.data.hub import hub_splits, is_hub
from macai.data.tables import raw_rows, split_file
from macai.errors import DataError

ROLES: Final = ("system", "user", "assistant", "tool")
SPLITS: Final = ("train", "valid", "test")
VALID_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `train` says whether an assistant's turn is learnt."""

    role: str
    content: str
    train: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One example: either `messages`, or `prompt` and `completion`, or `text` alone.

    Attributes:
        source: Where it was read, "file:line".
        chosen: With `rejected` in place of a completion: the better answer and the worse.
        label: With a completion: whether it is a good one.
    """

    source: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: bool | None = None


class FileRows(Collection[Row]):
    """Rows of a file, read anew each time: of each, a short hash stays in memory.

    Attributes:
        digests: uint64 [N]; the beginnings of `row_digest` of the rows.
    """

    def __init__(self, path: Path) -> None:
        """Read the file once and check all of its rows.

        Raises:
            DataError: it cannot be read or holds no rows, or some rows are bad: all of them.
        """
        self.path = path
        digests = array("Q", (_short(row) for row in _rows(path)))
        self.digests: NDArray[np.uint64] = np.frombuffer(digests, np.uint64)
        self._chosen: NDArray[np.bool_] | None = None

    def only(self, chosen: NDArray[np.bool_]) -> "FileRows":
        """Return some of them: `chosen` says which, bool [N]."""
        some = FileRows.__new__(FileRows)
        some.path, some.digests, some._chosen = self.path, self.digests[chosen], chosen
        return some

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, row: object) -> bool:
        return any(row == own for own in self)

    def __iter__(self) -> Iterator[Row]:
        count = 0
        for number, row in enumerate(_rows(self.path)):
            if self._chosen is None or (number < len(self._chosen) and self._chosen[number]):
                count += 1
                yield row
        if count != len(self):
            raise DataError(f"{self.path}: changed while it was read")


@dataclass(frozen=True, slots=True)
class Splits:
    """The rows of a data set by what they are for; `test` may be empty."""

    train: Collection[Row]
    valid: Collection[Row]
    test: Collection[Row]


def read_splits(path: Path) -> Splits:
    """Read a folder with train.jsonl and valid.jsonl (test.jsonl if present), or one file.

    Or what `macai.data.hub` reads. Every row is checked, and none is kept: see FileRows.

    Each may be .csv or .parquet instead.

    Of one file a tenth becomes the validation set (at least one row), chosen by a hash of each row,
    so that adding rows does not move the others between the two.

    Raises:
        DataError: missing or empty files, or bad rows: all of them, with file and line.
    """
    if is_hub(path):
        there = hub_splits(path)
        if "valid" not in there:
            learnt = _split(FileRows(there["train"]))
            test = FileRows(there["test"]) if "test" in there else []
            return replace(learnt, test=test)
        return _read({split: there.get(split) for split in SPLITS})
    if not path.exists():
        raise DataError(f"{path}: no such file or folder", hint="--data takes a .jsonl or a folder")
    if path.is_file():
        return _split(FileRows(path))
    files = {split: split_file(path, split) for split in SPLITS}
    if missing := [f"{split}.jsonl" for split in ("train", "valid") if files[split] is None]:
        raise DataError(
            f"{path}: no {' and no '.join(missing)} in it",
            hint="a data folder holds train.jsonl and valid.jsonl, or .csv or .parquet; one as on "
            f"the hub is --data hub:{path}",
        )
    return _read(files)


def _read(files: Mapping[str, Path | None]) -> Splits:
    """Read the file of each split; DataError for all that is wrong in all of them."""
    splits: list[Collection[Row]] = []
    errors: list[DataError] = []
    for file in files.values():
        try:
            splits.append(FileRows(file) if file else [])
        except DataError as e:
            errors.append(e)
    if errors:
        raise DataError("\n".join(e.message for e in errors), hint=errors[0].hint)
    return Splits(*splits)


def read_learnt(path: Path) -> Collection[Row]:
    """Read the rows of a file, or of a folder those of its train.jsonl, .csv or .parquet.

    Raises:
        DataError: as `read_splits`.
    """
    if is_hub(path):
        return FileRows(hub_splits(path)["train"])
    if not path.is_dir():
        return FileRows(path)
    file = split_file(path, "train")
    if file is None:
        raise DataError(f"{path}: no train.jsonl in it", hint="or .csv or .parquet")
    return FileRows(file)


def read_rows(path: Path) -> list[Row]:
    """Read one file: see `macai.data.tables.raw_rows`.

    Raises:
        DataError: the file cannot be read or holds no rows, or some rows are bad: all of them.
    """
    return list(_rows(path))


def _rows(path: Path) -> Iterator[Row]:
    """Yield the good rows of a file; after the last, raise DataError for all that are bad."""
    problems, good = [], 0
    for number, raw in raw_rows(path):
        try:
            row = _parse(raw, f"{path}:{number}")
        except (ValueError, RecursionError) as e:
            problems.append(f"{path}:{number}: {e}")
            continue
        good += 1
        yield row
    if problems:
        raise bad_rows(problems)
    if not good:
        raise DataError(f"{path}: no rows in it", hint=_FORMS)


def bad_rows(problems: Sequence[str], *, hint: str | None = None) -> DataError:
    """Return the error that lists bad rows, 50 at most; the usual hint shows a row's forms."""
    count = "1 bad row" if len(problems) == 1 else f"{len(problems)} bad rows"
    listed = list(problems[:_LISTED])
    if more := len(problems) - len(listed):
        listed.append(f"and {more} more")
    return DataError("\n  ".join([f"{count}:", *listed]), hint=hint or _FORMS)


_LISTED = 50


_FORMS = (
    'a row is {"messages": [{"role", "content"}, ...]}, {"prompt", "completion"} or {"text"}, '
    "one JSON object a line"
)


def _parse(raw: bytes | dict[str, Any], source: str) -> Row:
    value = _decode(raw) if isinstance(raw, bytes) else raw
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a text", type(None): "null"}.get(type(value), "a number")
        raise ValueError(f"{kind}, not an object; one is wanted on each line")
    forms = [form for form in ("messages", "prompt", "text") if form in value]
    if len(forms) != 1:
        found = (
            " and ".join(repr(form) for form in forms) or ", ".join(map(repr, value)) or "nothing"
        )
        raise ValueError(f"needs one of 'messages', 'prompt' or 'text', has {found}")
    if forms == ["messages"]:
        return Row(source=source, messages=_messages(value["messages"]))
    if forms == ["prompt"]:
        return _prompted(value, source)
    return Row(source=source, text=_text(value, "text"))


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8 at byte {e.start}") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"not valid JSON: {e.msg} at column {e.colno}") from e


def _prompted(value: dict[str, Any], source: str) -> Row:
    prompt = _text(value, "prompt")
    if "chosen" in value or "rejected" in value:
        chosen, rejected = _text(value, "chosen"), _text(value, "rejected")
        if chosen == rejected:
            raise ValueError("'chosen' and 'rejected' are the same")
        return Row(source=source, prompt=prompt, chosen=chosen, rejected=rejected)
    label = value.get("label")
    if label is not None and not isinstance(label, bool):
        raise ValueError("'label' is not true or false")
    return Row(source=source, prompt=prompt, completion=_text(value, "completion"), label=label)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("'messages' is not a list with turns in it")
    messages = tuple(_message(turn, number) for number, turn in enumerate(value, 1))
    if not any(m.role == "assistant" and m.train for m in messages):
        raise ValueError("no assistant turn to learn from")
    return messages


def _message(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number} is not an object")
    role, content, train = turn.get("role"), turn.get("content"), turn.get("train", True)
    if role not in ROLES:
        raise ValueError(f"turn {number}: role {role!r} is none of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"turn {number}: 'content' is not a string")
    _require_unicode(content, f"turn {number}")
    if role == "assistant" and not content.strip():
        raise ValueError(f"turn {number}: the assistant says nothing")
    if not isinstance(train, bool):
        raise ValueError(f"turn {number}: 'train' is not true or false")
    return Message(role=role, content=content, train=train)


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise ValueError(f"'{key}' is {'missing' if key not in value else 'not a string'}")
    if not text.strip():
        raise ValueError(f"'{key}' is empty")
    _require_unicode(text, f"'{key}'")
    return text


def _require_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:  # "\ud83d" alone is JSON, but no tokenizer takes it
        raise ValueError(f"{what} has half a surrogate pair at character {e.start + 1}") from e


def _split(rows: FileRows) -> Splits:
    if len(rows) < 2:
        raise DataError(
            f"{rows.path}: one row is too few: one to learn, one to check",
            hint="add rows, or give a folder with train.jsonl and valid.jsonl",
        )
    order = np.argsort(rows.digests, kind="stable")
    count = max(1, round(len(rows) * VALID_SHARE))
    while count < len(rows) - 1 and rows.digests[order[count]] == rows.digests[order[count - 1]]:
        count += 1  # what is there twice is on one side
    held = np.zeros(len(rows), bool)
    held[order[:count]] = True
    return Splits(rows.only(~held), rows.only(held), [])


def digests_of(rows: Collection[Row]) -> NDArray[np.uint64]:
    """Return the beginnings of `row_digest` of rows, uint64 [N]: 1 in 10^19 are alike by chance."""
    if isinstance(rows, FileRows):
        return rows.digests
    return np.array([_short(row) for row in rows], np.uint64)


def _short(row: Row) -> int:
    return int.from_bytes(row_digest(row)[:8], "big")


def row_digest(row: Row) -> bytes:
    """Return a hash of what the row says, 32 bytes; where it stands is no part of it."""
    said: Iterable[str] = (f"{m.role}\0{m.content}" for m in row.messages)
    text = "\0".join([*said, row.prompt or "", row.completion or "", row.text or ""])
    if row.chosen is not None:
        text += f"\0{row.chosen}\0{row.rejected}"
    return hashlib.sha256(text.encode()).digest()
