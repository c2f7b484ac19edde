"""The page as Chromium shows it. Needs a Chromium of the system, and axe-core: the extra `page`."""

import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from macai.bench.report.page import page
from tests.bench.samples import whole_report

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
AXE = importlib.util.find_spec("axe_core_python")
POLICY = re.compile(r"<meta http-equiv=.Content-Security-Policy.*?>")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the PATH"),
]


def browse(file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={file.parent}/home"]
    options += ["--virtual-time-budget=30000", "--enable-logging=stderr", "--window-size=1060,1400"]
    command = [BROWSER, *options, *flags, "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


def asked(tmp_path: Path, question: str, *flags: str, before: str = "") -> object:
    """Return what an expression, or the promise that it is, gives in the page."""
    script = (
        f"<script>{before}</script><script>Promise.resolve({question}).then(answer => "
        "document.documentElement.setAttribute('data-answer', JSON.stringify(answer)))</script>"
    )
    file = tmp_path / "asked.html"
    # Without the page's own policy, which forbids what this adds.
    file.write_text(POLICY.sub("", page(whole_report())) + script, encoding="utf-8")
    answer = re.search(r'data-answer="([^"]*)"', browse(file, *flags).stdout)
    assert answer is not None
    return json.loads(html.unescape(answer[1]))


def test_the_console_stays_empty_and_nothing_is_forbidden(tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page(whole_report()), encoding="utf-8")
    said = [line for line in browse(file).stderr.splitlines() if "CONSOLE" in line]
    assert said == []


def test_a_script_in_the_page_would_not_run(tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page(whole_report()) + "<script>document.title = 'ran'</script>")
    result = browse(file)
    assert "<title>ran" not in result.stdout
    assert any("CONSOLE" in line for line in result.stderr.splitlines())


def test_every_chart_takes_room_and_none_is_wider_than_the_page(tmp_path):
    shapes = asked(
        tmp_path,
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
        ".map(r => [r.width, r.height, r.right])",
    )
    assert len(shapes) >= 8
    assert all(width > 200 and height > 30 for width, height, _ in shapes)
    assert all(right <= 1060 for *_, right in shapes)


@pytest.mark.skipif(AXE is None, reason="needs axe-core: pip install -e '.[page]'")
@pytest.mark.parametrize("flags", [[], ["--blink-settings=preferredColorScheme=0"]])
def test_axe_finds_nothing_in_light_and_in_dark(tmp_path, flags):
    assert AXE is not None
    assert AXE.origin is not None
    axe = (Path(AXE.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    ground = asked(tmp_path, "getComputedStyle(document.body).backgroundColor", *flags)
    assert ground == ("rgb(19, 19, 22)" if flags else "rgb(251, 251, 253)")
    found = asked(
        tmp_path,
        "axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))",
        *flags,
        before=axe,
    )
    assert found == []
