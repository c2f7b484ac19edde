import json
import subprocess
import sys
import tomllib

import pytest

from benchmarks.harness import PEERS, in_turns, peer_python, process, summary, tell


def sides(log, times):
    def side(name):
        def run():
            log.append(name)
            return {"seconds": next(times[name])}

        return run

    return {name: side(name) for name in times}


def test_sides_take_turns_and_every_other_round_goes_backwards():
    log = []
    measured = in_turns(sides(log, {"a": iter([9, 1, 2]), "b": iter([9, 3, 4])}), 2, warm_up=1)
    assert "".join(log) == "ab" + "ba" + "ab"
    assert measured == {"a": {"seconds": [1, 2]}, "b": {"seconds": [3, 4]}}


def test_a_ratio_is_taken_within_a_round():
    # The machine is three times as slow in the second round, for both.
    measured = {"a": {"seconds": [1.0, 3.0, 1.0]}, "b": {"seconds": [2.0, 6.0, 2.0]}}
    found = summary(measured, to="b")
    assert found["ratios"]["a / b"]["seconds"]["median"] == 0.5
    assert found["ratios"]["a / b"]["seconds"]["high"] == 0.5
    assert found["sides"]["a"]["seconds"]["p90"] > 2


def test_one_line_of_json_is_printed_and_a_table_for_people(capsys):
    tell("nothing", {"a": {"seconds": [1.0, 2.0]}, "b": {"seconds": [2.0, 2.0]}}, to="b", size=3)
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert (made["benchmark"], made["rounds"], made["size"]) == ("nothing", 2, 3)
    assert made["machine"]["cores"] >= 1
    assert "a / b" in err


def test_a_process_gives_its_costs_and_what_it_printed():
    command = [sys.executable, "-c", "print(6 * 7)"]
    values = process(command, lambda text: {"answer": float(text)})
    assert values["answer"] == 42
    assert values["seconds"] > 0
    assert values["peak_bytes"] > 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists who started whom")
def test_memory_counts_what_a_process_has_started():
    child = "import time; x = bytearray(200 << 20); time.sleep(0.5)"
    started = "import subprocess, sys; x = bytearray(100 << 20); "
    started += f"subprocess.run([sys.executable, '-c', {child!r}])"
    # In a process of its own: one that is measured begins with the memory of what measures it.
    measuring = f"import sys; from macai.bench.process import measure; c = {started!r}\n"
    measuring += "print(measure([sys.executable, '-c', c]).peak_bytes)"
    done = subprocess.run([sys.executable, "-c", measuring], capture_output=True, check=True)
    assert 300 << 20 < int(done.stdout) < 400 << 20


def test_every_version_of_a_peer_is_pinned():
    peers = tomllib.loads(PEERS.read_text(encoding="utf-8"))
    wanted = [line for peer in peers.values() for line in peer["install"]]
    assert len(wanted) > 8
    assert [line for line in wanted if "==" not in line and "<" not in line] == []


def test_an_unknown_peer_is_refused_by_name():
    with pytest.raises(SystemExit, match="no peer 'mystery'"):
        peer_python("mystery")
