"""What the page of a run says, from folders written by hand."""

import json
import re
from pathlib import Path

import pytest

from macai.errors import ReportError
from macai.page import svg
from macai.report import charts
from macai.report.folder import read_folder, write_report
from macai.report.page import page, public
from tests.report.runs import HOSTILE, picture_run, rewarded, text_run


def shown(folder):
    return page(read_folder(folder))


def headings(text):
    return re.findall(r"<h3>(.*?)</h3>", text)


def test_a_run_has_its_curves_speed_memory_data_answers_and_configuration(tmp_path):
    text = shown(text_run(tmp_path / "run"))
    for heading in (
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Tokens a second",
        "Memory",
        "Length of the training rows",
    ):
        assert heading in headings(text)
    assert text.count("<svg") == 6
    for fact in ("4,800", "1,200 (25%)", "7.0%", "16 to 31 tokens", "mlx 0.32.4", "rank = 16"):
        assert fact in text
    assert text.count("<dt>after</dt>") == 3
    assert "coremltools" not in text  # it was not installed


def test_a_run_that_compared_answers_shows_what_they_are_worth(tmp_path):
    text = shown(rewarded(tmp_path / "run"))
    for heading in ("Rewards", "Reward margin", "Reward accuracy"):
        assert heading in headings(text)
    (path,) = re.findall(r'<path d="M([^"]*)" class="line s1"', text)
    heights = [float(place.split()[1]) for place in path.split("L")]
    assert all(svg.TOP <= y <= svg.HEIGHT - svg.BOTTOM for y in heights)  # though below 0
    assert heights == sorted(heights)
    assert "Rewards" not in headings(shown(text_run(tmp_path / "other")))


def test_the_numbers_at_the_top_are_the_best_validation_and_the_speed_of_all_steps(tmp_path):
    text = shown(text_run(tmp_path / "run"))
    assert "<b>2.1000</b> best validation loss<small>after step 400</small>" in text
    assert "<b>3,600</b> tokens a second" in text


def test_a_run_on_pictures_shows_the_first_and_the_last_of_them(tmp_path):
    text = shown(picture_run(tmp_path / "run"))
    assert [h for h in headings(text) if h.startswith("After")] == [
        f"After step {2 + 2 * (n * 19 // 7)}" for n in range(8)
    ]
    assert text.count('src="data:image/webp;base64,') == 8
    assert "Pictures a second" in headings(text)
    assert "of 512x512" in text


def test_what_others_wrote_is_text_and_nothing_else(tmp_path):
    text = shown(text_run(tmp_path / "run", text=HOSTILE))
    assert "<script" not in text
    assert "<img" not in text
    assert (
        text.count("&lt;script&gt;alert(1)") >= 13
    )  # title, heading, recipe, 3 x 4 of the answers
    assert "{{ 7 * 7 }}" in text


def test_nothing_is_loaded_and_nothing_personal_is_said(tmp_path):
    text = shown(text_run(tmp_path / "run"))
    assert not re.search(r"(src|href)=|url\(|@import", text)
    assert "somebody" not in text
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert "path = &#34;rows.jsonl&#34;" in text


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (str(Path.home() / "m.gguf"), "m.gguf"),
        ("~/models/m", "m"),
        ("owner/name", "owner/name"),
        (["/a/b", "c"], ["b", "c"]),
        ({"path": "/a/b"}, {"path": "b"}),
        (3, 3),
    ],
)
def test_a_path_is_told_by_its_last_part(given, left):
    assert public({"key": given}) == {"key": left}


def test_a_run_that_was_killed_says_how_far_it_came(tmp_path):
    folder = text_run(tmp_path / "run", steps=37, state="begun")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 38, "lo')
    assert "37 of 400 steps" in shown(folder)
    assert "still going on" not in shown(text_run(tmp_path / "other"))


def test_a_run_without_a_step_has_a_page(tmp_path):
    text = shown(text_run(tmp_path / "run", steps=0, state="begun"))
    assert "0 of 400 steps" in text
    assert "Loss" not in headings(text)


def test_a_run_of_an_earlier_macai_has_a_page_of_its_metrics(tmp_path):
    folder = text_run(tmp_path / "run")
    (folder / "run.json").unlink()
    text = shown(folder)
    assert "Loss" in headings(text)
    assert "<dt>" not in text


def test_the_page_is_beside_what_it_is_about(tmp_path):
    folder = text_run(tmp_path / "run")
    assert write_report(folder) == folder / "report.html"
    assert (folder / "report.html").read_text(encoding="utf-8") == shown(folder)


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(ReportError, match=r"no recipe\.toml"):
        read_folder(tmp_path)
    (tmp_path / "recipe.toml").write_text("[")
    with pytest.raises(ReportError, match="is not TOML"):
        read_folder(tmp_path)


def test_a_picture_outside_of_the_run_is_not_shown(tmp_path):
    folder = picture_run(tmp_path / "run")
    outside = tmp_path / "mine.png"
    (folder / "samples" / "step-000002.png").rename(outside)
    names = ("../mine.png", str(outside), "samples/../../mine.png", 3)
    lines = [{"step": 2, "sample": name} for name in names]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_folder(folder).pictures == []


@pytest.mark.parametrize("count", [1, charts.MOST, charts.MOST + 1, 10_000])
def test_a_line_of_many_steps_keeps_its_mean_and_its_last_step(count):
    points = [(float(n), float(n)) for n in range(1, count + 1)]
    thinned = charts.thinned(points)
    assert len(thinned) <= charts.MOST
    assert thinned[-1][0] == count
    size = -(-count // charts.MOST)
    assert thinned[0] == (size, (size + 1) / 2)
