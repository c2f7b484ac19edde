"""The page of a run as Chromium shows it."""

import pytest

from macai.report.folder import read_folder
from macai.report.page import page
from tests.browser import DARK, asked, console, needs_axe, needs_browser, violations
from tests.report.runs import HOSTILE, picture_run, rewarded, text_run

pytestmark = [pytest.mark.slow, needs_browser]
RUNS = {
    "texts": text_run,
    "hostile": lambda folder: text_run(folder, text=HOSTILE),
    "pictures": picture_run,
    "rewards": rewarded,
    "killed": lambda folder: text_run(folder, steps=7, state="begun"),
}


@pytest.fixture(params=RUNS)
def shown(request, tmp_path):
    return page(read_folder(RUNS[request.param](tmp_path / "run")))


def test_the_console_stays_empty_and_nothing_is_forbidden(tmp_path, shown):
    assert console(tmp_path, shown) == []


def test_every_chart_and_picture_takes_room_and_none_is_wider_than_the_page(tmp_path, shown):
    shapes = asked(
        tmp_path,
        shown,
        "[...document.querySelectorAll('svg, img')].map(s => s.getBoundingClientRect())"
        ".map(r => [r.width, r.height, r.right])",
    )
    assert len(shapes) >= 5
    assert all(width > 200 and height > 30 for width, height, _ in shapes)
    assert all(right <= 1060 for *_, right in shapes)
    wide = asked(tmp_path, shown, "document.documentElement.scrollWidth")
    assert wide <= 1060


@needs_axe
@pytest.mark.parametrize("flags", [[], [DARK]])
def test_axe_finds_nothing_in_light_and_in_dark(tmp_path, shown, flags):
    assert violations(tmp_path, shown, *flags) == []
