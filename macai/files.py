"""Nothing is ever half-written: a temporary name beside the target, then one rename."""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from macai.errors import OutputError

MARKS = ("config.json", "model_index.json", "macai.json", "Manifest.json")
"""Of these a model, a pipeline, a bundle and a package each has one."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it and rename it to `path`.

    The temporary name keeps the suffix, since some writers (`mx.save_safetensors`) choose by it.
    An exception removes the temporary file and leaves an older `path` as it was; a full disk or a
    missing right raises OutputError.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as f:
                os.fsync(f.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # its folder may not exist
            temporary.unlink()


@contextlib.contextmanager
def atomic_directory(
    path: Path, *, force: bool = False, marks: Collection[str] = MARKS
) -> Iterator[Path]:
    """Yield an empty temporary folder; on success rename it to `path`.

    An existing `path` is refused before any work, or with `force` replaced only once the new one is
    complete, if it holds one of `marks`, or there are none. Where `path` is a link, what it leads
    to is replaced.
    """
    refuse_replacing(path, force=force, marks=marks)
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with explained(path):
            temporary.mkdir(parents=True)
            yield temporary
            if target.exists():
                _exchange(temporary, target)
            else:
                temporary.rename(target)
    except OutputError as e:  # of a file in it: said under the name it would have had
        raise OutputError(e.message.replace(str(temporary), str(path)), hint=e.hint) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise OutputError when `path` holds something and `force` does not allow replacing it."""
    with explained(path):
        if path.is_dir() and not any(path.iterdir()):
            return
        exists = path.exists()
    if exists and not force and not path.is_file():
        raise OutputError(
            f"{path} exists already", hint="choose another --out, or replace it with --force"
        )
    if path.is_file():
        raise OutputError(f"{path} is a file, not a folder", hint="choose another --out")


def refuse_replacing(path: Path, *, force: bool, marks: Collection[str] = MARKS) -> None:
    """Raise OutputError when a folder may not be replaced as a whole, by `force` neither.

    It may, if it holds one of `marks`, the names of files that tell what macai makes: all that is
    in it will be gone.
    """
    refuse_existing(path, force=force)
    if not path.is_dir() or not any(path.iterdir()):
        return
    target = path.resolve()
    if Path.cwd().is_relative_to(target):
        raise OutputError(f"{path} is where you are", hint="choose another --out")
    if marks and not any((target / mark).is_file() for mark in marks):
        raise OutputError(
            f"{path} holds neither a model nor a package: --force replaces no other folder",
            hint="choose another --out, or empty it yourself",
        )


def require_writable(folder: Path) -> None:
    """Raise OutputError if no file could be put into `folder`, which need not be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file, not a folder", hint="choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there}: may not be written to", hint="choose another --out")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def _exchange(new: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says about writing `path` into OutputError."""
    try:
        yield
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OutputError(
            f"{path}: cannot be written: {e.strerror or e}",
            hint="free some space on that disk" if full else "choose another place for the output",
        ) from e
