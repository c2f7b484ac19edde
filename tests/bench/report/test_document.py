import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macai.bench.report.document import merged, parse_report, read_report, write_report
from macai.bench.report.markdown import markdown
from macai.bench.report.page import page
from macai.errors import ReportError
from tests.bench.samples import report, whole_report


def refused(value, match):
    with pytest.raises(ReportError, match=match):
        parse_report(value if isinstance(value, str) else json.dumps(value), source="x.json")


def test_a_report_comes_back_as_it_was_written(tmp_path):
    write_report(tmp_path / "report.json", whole_report())
    assert read_report(tmp_path / "report.json") == whole_report()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not JSON"),
        ("[]", "must be object"),
        ('{"kind": "macai-bench", "version": 1, "runs": []}', "at least 1 items|must contain"),
        ('{"kind": "macai-bench", "version": 2, "runs": [1]}', "a report of version 2"),
        ('{"kind": "macai-bench", "kind": "macai-bench"}', "a key occurs twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1e999}', "beyond a double"),
        ('{"a": ' + "9" * 5000 + "}", "more than 30 digits"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_report_is_refused(text, match):
    refused(text, match)


def change(path, value):
    made = whole_report()
    at = made
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return made


FIGURE = ("runs", 0, "figures", 1)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ((*FIGURE, "values"), [], "values"),
        ((*FIGURE, "values"), [-1.0], "bigger than or equal to 0"),
        ((*FIGURE, "values"), ["fast"], "must be number"),
        ((*FIGURE, "values"), [True] * 8, "must be number"),
        ((*FIGURE, "values"), [1e30] * 8, "smaller than or equal to"),
        ((*FIGURE, "unit"), "parsecs", "unit must be one of"),
        ((*FIGURE, "id"), None, "must contain"),
        ((*FIGURE, "script"), "alert(1)", "must not contain"),
        ((*FIGURE, "name"), "a\nb", "must match pattern"),
        ((*FIGURE, "name"), "\x1b[31mred", "must match pattern"),
        ((*FIGURE, "name"), "\u202eevil", "must match pattern"),
        ((*FIGURE, "name"), "x" * 400, "shorter than or equal"),
        ((*FIGURE, "others"), [0.5], "8 values and 1 of others"),
        ((*FIGURE, "id"), "generate/tiny/prefill/context=32", "two figures of one id"),
        (("runs", 0, "machine", "cores"), 0, "bigger than or equal to 1"),
        (("runs", 0, "machine", "hostname"), "alices-mac", "must not contain"),
        (("runs", 0, "date"), "yesterday", "must match pattern"),
        (("runs", 0, "settings", "beside"), "me", "must match pattern"),
        (("runs", 0, "sustained", 0, "values"), [1.0], "not as many seconds as values"),
    ],
)
def test_a_report_with_one_thing_wrong_is_refused_by_its_place(path, value, match):
    refused(change(path, value), match)


def test_a_file_larger_than_any_report_is_not_read(tmp_path):
    path = tmp_path / "report.json"
    with path.open("wb") as file:
        file.truncate(40 << 20)
    with pytest.raises(ReportError, match="larger than 32 MiB"):
        read_report(path)


def test_merging_puts_runs_beside_each_other_and_the_same_run_once():
    first, second = report(1), report(2)
    both = merged(first, second)
    assert len(both["runs"]) == 2
    assert merged(both, copy.deepcopy(second)) == both


@settings(max_examples=20)
@given(st.text(min_size=1, max_size=60))
def test_no_text_in_a_report_becomes_markup(text):
    hostile = f"<script>alert(1)</script><img src=x onerror=alert(1)>{text}"
    made = whole_report()
    run = made["runs"][0]
    run["figures"] = run["figures"][:2]
    run["machine"]["chip"] = run["tool"] = run["commands"][0] = hostile
    run["figures"][0]["subject"] = run["figures"][0]["name"] = hostile
    run["figures"][0]["parameters"] = {hostile: hostile}
    run["absent"] = [{"what": hostile, "why": hostile}]
    run["placement"][0]["subject"] = hostile
    shown = page(made)
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;alert(1)" in shown
    written = markdown(made)
    lines = [line for line in written.splitlines() if not line.startswith("    ")]  # but code
    assert not re.search(r"(?<!\\)[<>]", "\n".join(lines))


def test_the_page_loads_nothing_and_forbids_scripts():
    shown = page(whole_report())
    assert "default-src 'none'; style-src 'unsafe-inline'" in shown
    for loading in ("http:", "https:", "src=", "href=", "url(", "@import"):
        assert loading not in shown


def test_a_report_of_a_mac_is_shown_with_all_it_has():
    shown, written = page(whole_report()), markdown(whole_report())
    for text in ("Apple M9", "Neural Engine", "macai bench generate --quick", "--image-model"):
        assert text in shown
    assert "| tiny: decode (context 32) |" in written
    assert "Apple M9, 10 cores, 32 GiB, macOS 26.1" in written


def test_a_device_that_wrote_values_only_is_shown_as_well():
    made = report(3, probed=False)
    assert "Apple M9" in page(made)
    assert markdown(made).count("| tiny:") == 35
