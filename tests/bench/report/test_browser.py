"""The page as Chromium shows it."""

import pytest

from macai.bench.report.page import page
from tests.bench.samples import whole_report
from tests.browser import DARK, asked, browse, console, needs_axe, needs_browser, violations

pytestmark = [pytest.mark.slow, needs_browser]


def test_the_console_stays_empty_and_nothing_is_forbidden(tmp_path):
    assert console(tmp_path, page(whole_report())) == []


def test_a_script_in_the_page_would_not_run(tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page(whole_report()) + "<script>document.title = 'ran'</script>")
    result = browse(file)
    assert "<title>ran" not in result.stdout
    assert any("CONSOLE" in line for line in result.stderr.splitlines())


def test_every_chart_takes_room_and_none_is_wider_than_the_page(tmp_path):
    shapes = asked(
        tmp_path,
        page(whole_report()),
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
        ".map(r => [r.width, r.height, r.right])",
    )
    assert len(shapes) >= 8
    assert all(width > 200 and height > 30 for width, height, _ in shapes)
    assert all(right <= 1060 for *_, right in shapes)


@needs_axe
@pytest.mark.parametrize("flags", [[], [DARK]])
def test_axe_finds_nothing_in_light_and_in_dark(tmp_path, flags):
    shown = page(whole_report())
    ground = asked(tmp_path, shown, "getComputedStyle(document.body).backgroundColor", *flags)
    assert ground == ("rgb(19, 19, 22)" if flags else "rgb(251, 251, 253)")
    assert violations(tmp_path, shown, *flags) == []
