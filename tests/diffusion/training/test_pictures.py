import json

import numpy as np
import pytest
from PIL import Image

from macai.diffusion.images import read_picture
from macai.diffusion.training.pictures import hold_back, read_pictures, require_colour
from macai.errors import DataError, UsageError
from tests.diffusion.training.small import COLOURS, picture, picture_dir


@pytest.mark.parametrize("captions", ["txt", "jsonl"])
def test_captions_come_from_files_of_the_same_name_or_from_metadata(tmp_path, captions):
    found = read_pictures(picture_dir(tmp_path / "p", captions=captions))
    assert {p.file.stem: p.caption for p in found} == {name: name for name in COLOURS}
    assert all((p.width, p.height) == (16, 16) for p in found)


def test_several_rows_of_a_picture_are_captions_of_it(tmp_path):
    folder = picture_dir(tmp_path / "p", captions="jsonl")
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as rows:
        rows.write('\n{"file_name": "red.png", "text": " a red  square"}')
    found = {p.file.stem: p.captions for p in read_pictures(folder)}
    assert found == {name: (name,) for name in COLOURS} | {"red": ("red", "a red square")}


def test_pictures_without_caption_get_the_prompt(tmp_path):
    folder = picture_dir(tmp_path / "p", captions="none")
    (folder / "red.txt").write_text("a  red\nsquare\n", encoding="utf-8")
    captions = {p.file.stem: p.caption for p in read_pictures(folder, prompt="a thing")}
    assert captions == dict.fromkeys(COLOURS, "a thing") | {"red": "a red square"}


def test_jpeg_and_webp_in_folders_below_are_read_and_hidden_files_are_not(tmp_path):
    (tmp_path / "a").mkdir()
    picture((1, 2, 3)).save(tmp_path / "a" / "x.JPG", format="JPEG")
    picture((1, 2, 3), 16, 32).save(tmp_path / "a" / "y.webp", lossless=True)
    (tmp_path / "a" / "._x.jpg").write_bytes(b"what macOS leaves on other disks")
    found = read_pictures(tmp_path, captions=False)
    assert [(p.file.name, p.height, p.caption) for p in found] == [
        ("x.JPG", 16, ""),
        ("y.webp", 32, ""),
    ]


def test_everything_that_is_wrong_with_a_folder_is_said_at_once(tmp_path):
    folder = picture_dir(tmp_path / "p")
    (folder / "red.png").write_bytes((folder / "red.png").read_bytes()[:60])
    (folder / "green.txt").unlink()
    (folder / "blue.txt").write_text(" \n", encoding="utf-8")
    (folder / "grey.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError) as caught:
        read_pictures(folder)
    said = caught.value.message
    assert "4 problems" in said
    for part in ("red.png: a damaged", "green.png: no caption", "blue.png: its caption is empty"):
        assert part in said
    assert "grey.txt is not UTF-8" in said


def test_everything_that_is_wrong_with_metadata_is_said_with_its_line(tmp_path):
    folder = picture_dir(tmp_path / "p", captions="jsonl")
    rows = ["{", '{"file_name": "red.png"}', '["red.png"]', "", '{"file_name": 1, "text": "x"}']
    for name in ("../p/red.png", "/etc/passwd", "gone.png"):
        rows.append(json.dumps({"file_name": name, "text": "x"}))
    rows += [json.dumps({"file_name": "red.png", "text": "x"})] * 2
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_pictures(folder)
    said = caught.value.message
    assert "8 problems" in said
    assert [f"metadata.jsonl:{n}:" in said for n in (1, 2, 3, 5, 6, 7, 10)] == [True] * 7
    assert "gone.png: No such file" in said


def test_a_folder_without_pictures_and_no_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="no pictures in it"):
        read_pictures(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_pictures(tmp_path / "gone")


def test_what_shows_through_a_transparent_picture_is_the_background(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 255)
    pixels[:, 4:, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", background="#00ff00")
    assert picture[0, 0, 0].tolist() == [1, -1, -1]
    assert picture[0, 0, 7].tolist() == [-1, 1, -1]
    assert read_picture(tmp_path / "a.png")[0, 0, 7].tolist() == [-1, -1, -1]


def test_a_background_that_is_no_colour_is_refused():
    assert require_colour("#ff8000") == "#ff8000"
    with pytest.raises(UsageError, match="is no colour"):
        require_colour("wight")


def test_pictures_held_back_stay_so_when_others_come(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    for i in range(40):
        picture((i, i, 0)).save(folder / f"{i}.png")
    pictures = read_pictures(folder, captions=False)
    learnt, held = hold_back(pictures, 0.25)
    assert len(held) == 10
    assert {p.file for p in learnt} | {p.file for p in held} == {p.file for p in pictures}
    fewer = hold_back([p for p in pictures if p.file.stem != learnt[0].file.stem], 0.25)[1]
    assert len({p.file for p in held} & {p.file for p in fewer}) >= 9
    assert hold_back(pictures, 0.0) == (pictures, [])
