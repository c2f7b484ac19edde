import getpass
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from macai.bench.report.document import read_report, write_report
from macai.cli.bench_run import written
from macai.errors import ReportError
from tests.bench.elsewhere import other_environment
from tests.bench.samples import report, reports_in_turns, whole_report


@pytest.fixture
def two(tmp_path):
    """Two reports, the second of which decodes a fifth slower."""
    write_report(tmp_path / "a.json", report(1))
    write_report(tmp_path / "b.json", report(2, slower=1.2))
    return tmp_path / "a.json", tmp_path / "b.json"


def test_a_comparison_says_first_what_is_significant(macai, two):
    result = macai("bench", "--compare", *two)
    assert result.code == 0
    rows = [line for line in result.out.splitlines() if line.startswith("| generate")]
    assert [("decode" in row, "**slower**" in row) for row in rows[:5]] == [(True, True)] * 5
    assert "5 of 35 figures differ significantly." in result.out


def test_a_comparison_as_json_has_every_figure(macai, two):
    found = json.loads(macai("bench", "--compare", *two, "--json").out)
    assert len(found["figures"]) == 35
    assert {f["verdict"] for f in found["figures"] if "decode" in f["id"]} == {"slower"}


def test_a_devices_report_is_put_beside_ours_once(macai, tmp_path):
    device, out = tmp_path / "device.json", tmp_path / "bench"
    write_report(device, report(7, probed=False))
    write_report(tmp_path / "bench" / "report.json", whole_report())
    (out / "comparison.json").write_text("{}")
    for _ in range(2):
        assert macai("bench", "--import", device, "--out", out).code == 0
        assert len(read_report(out / "report.json")["runs"]) == 2
    assert (out / "report.html").read_text().count("<h1>Apple M9</h1>") == 2
    assert not (out / "comparison.json").exists()
    assert (out / "report.md").read_text().count("## macai bench: Apple M9") == 2


def test_a_hostile_report_is_refused_and_leaves_what_was_there(macai, tmp_path):
    hostile = tmp_path / "hostile.json"
    hostile.write_text(json.dumps(whole_report()).replace("1000.0", "NaN"))
    result = macai("bench", "--import", hostile, "--out", tmp_path / "bench")
    assert result.code == 1
    assert "not JSON: NaN is not JSON" in result.err
    assert not (tmp_path / "bench").exists()


def test_what_two_versions_in_turns_leave_is_compared_again_alike(macai, tmp_path):
    before, after = reports_in_turns(1, slower=1.1)
    text = written(tmp_path, [before, after], as_json=False)
    files = {"report.json", "report.md", "report.html"}
    beside = {"beside.json", "comparison.json", "comparison.md"}
    assert {file.name for file in tmp_path.iterdir()} == files | beside
    assert read_report(tmp_path / "report.json") == after
    said = (tmp_path / "comparison.md").read_text()
    assert text == (tmp_path / "report.md").read_text() + "\n" + said
    assert "The two took turns, sample by sample." in said
    assert "| generate: tiny: decode (context all) |" in said
    reports = (tmp_path / "beside.json", tmp_path / "report.json")
    assert macai("bench", "--compare", *reports).out == said
    again = json.loads(macai("bench", "--compare", *reports, "--json").out)
    assert again["in_turns"]
    assert again == json.loads((tmp_path / "comparison.json").read_text())
    assert "right before or after that of another version" in (tmp_path / "report.html").read_text()
    written(tmp_path, [report(1)], as_json=False)  # what was beside the old one is not of this
    assert {file.name for file in tmp_path.iterdir()} == files


def test_as_json_two_versions_are_one_object(tmp_path):
    before, after = reports_in_turns(1)
    found = json.loads(written(tmp_path, [before, after], as_json=True))
    assert (found["report"], found["beside"]) == (after, before)
    assert found["comparison"] == json.loads((tmp_path / "comparison.json").read_text())


def test_reports_of_versions_with_nothing_in_common_are_written_all_the_same(tmp_path):
    before, after = reports_in_turns(1)
    for figure in before["runs"][0]["figures"]:
        figure["id"] += "/old"
    with pytest.raises(ReportError, match="no figure in common"):
        written(tmp_path, [before, after], as_json=False)
    assert read_report(tmp_path / "beside.json") == before
    assert read_report(tmp_path / "report.json") == after


def test_flags_that_do_not_go_together_are_refused(macai, two):
    assert "measures nothing" in macai("bench", "all", "--compare", *two).err
    assert "measures nothing" in macai("bench", "train", "--import", two[0]).err
    assert "measures nothing" in macai("bench", "--beside", "python", "--compare", *two).err
    assert "measures nothing" in macai("bench", "--beside", "python", "--import", two[0]).err


def test_a_section_without_what_it_needs_says_what_it_needs(macai, tmp_path):
    result = macai("bench", "coreml", "--out", tmp_path / "out")
    assert result.code == 1
    assert "no --package was given" in result.err


def test_a_report_that_exists_is_not_replaced_without_force(macai, tmp_path):
    write_report(tmp_path / "report.json", report(1))
    result = macai("bench", "generate", "--out", tmp_path)
    assert result.code == 1
    assert "report.json exists already" in result.err


def command(*arguments):
    return [sys.executable, "-m", "macai", "bench", *map(str, arguments)]


@pytest.mark.slow
def test_a_report_of_a_model_is_whole_and_tells_nothing_personal(tiny_dir, tmp_path):
    out = tmp_path / "bench"
    run = subprocess.run(
        command("generate", "--quick", "--model", tiny_dir, "--out", out),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == (out / "report.md").read_text()
    [made] = read_report(out / "report.json")["runs"]
    assert made["settings"] | {"seconds": 0} == {
        "quick": True,
        "rounds": 10,
        "complete": True,
        "seconds": 0,
    }
    names = {figure["name"] for figure in made["figures"]}
    assert names >= {"load", "first token", "prefill", "decode", "peak memory", "process memory"}
    assert all(len(f["values"]) == 10 for f in made["figures"] if f["name"] != "load")
    assert made["commands"][1] == f"macai bench generate --quick --model {tiny_dir.name}"
    personal = {str(tmp_path), str(tiny_dir.parent), str(Path.home()), socket.gethostname()}
    personal |= {getpass.getuser()} - {"root"}  # a word of its own, in CI
    for file in out.iterdir():
        text = file.read_text()
        assert not [p for p in personal if re.search(rf"\b{re.escape(p)}\b", text)], file


@pytest.mark.slow
def test_ctrl_c_leaves_a_report_of_what_was_measured(tiny_dir, tmp_path):
    out = tmp_path / "bench"
    process = subprocess.Popen(
        command("generate", "--model", tiny_dir, "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("measuring"):
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "has what was measured until then" in said
    [made] = read_report(out / "report.json")["runs"]
    assert not made["settings"]["complete"]
    assert "It was stopped before its end" in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_slower_decoder_of_another_version_is_found_in_turns(tiny_dir, tmp_path):
    python, copied = other_environment(tmp_path)
    decode = copied / "generate/decode.py"
    text, step = decode.read_text(), "        token_id = cast(int, token.item())\n"
    assert step in text
    decode.write_text(text.replace(step, f"        __import__('time').sleep(0.01)\n{step}"))
    out = tmp_path / "bench"
    run = subprocess.run(
        command("generate", "--quick", "--model", tiny_dir, "--beside", python, "--out", out),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert f"before: macai 0.0.9 in {copied}" in run.stderr
    [before] = read_report(out / "beside.json")["runs"]
    [after] = read_report(out / "report.json")["runs"]
    assert before["settings"] == after["settings"]
    assert (before["tool"], before["commands"][0]) == ("macai 0.0.9", "pip install macai==0.0.9")
    found = json.loads((out / "comparison.json").read_text())
    verdicts = {figure["id"]: figure["verdict"] for figure in found["figures"]}
    assert verdicts[f"generate/{tiny_dir.name}/decode/context=32/batch=1"] == "faster"
    assert found["missing"] == []
