"""A page as Chromium shows it. Needs a Chromium of the system, and axe-core: the extra `page`."""

import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
AXE = importlib.util.find_spec("axe_core_python")
POLICY = re.compile(r"<meta http-equiv=.Content-Security-Policy.*?>")
DARK = "--blink-settings=preferredColorScheme=0"

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the PATH")
needs_axe = pytest.mark.skipif(AXE is None, reason="needs axe-core: pip install -e '.[page]'")


def browse(file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Return what the browser made of a file, as text, and what it said."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={file.parent}/home"]
    options += ["--virtual-time-budget=30000", "--enable-logging=stderr", "--window-size=1060,1400"]
    command = [BROWSER, *options, *flags, "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


def console(folder: Path, page: str) -> list[str]:
    """Return what is said in the console of a page."""
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    return [line for line in browse(file).stderr.splitlines() if "CONSOLE" in line]


def asked(folder: Path, page: str, question: str, *flags: str, before: str = "") -> object:
    """Return what an expression, or the promise that it is, gives in the page."""
    script = (
        f"<script>{before}</script><script>Promise.resolve({question}).then(answer => "
        "document.documentElement.setAttribute('data-answer', JSON.stringify(answer)))</script>"
    )
    file = folder / "asked.html"
    # Without the page's own policy, which forbids what this adds.
    file.write_text(POLICY.sub("", page) + script, encoding="utf-8")
    answer = re.search(r'data-answer="([^"]*)"', browse(file, *flags).stdout)
    assert answer is not None
    return json.loads(html.unescape(answer[1]))


def violations(folder: Path, page: str, *flags: str) -> object:
    """Return what axe-core finds wrong with a page: [rule, elements] each."""
    assert AXE is not None
    assert AXE.origin is not None
    axe = (Path(AXE.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    question = "axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"
    return asked(folder, page, question, *flags, before=axe)
