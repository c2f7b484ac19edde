"""What makes the emoji data, scores pictures and lays out the model, on a few drawn emoji."""

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image, ImageDraw

from macai.diffusion.loading.folder import read_json
from macai.diffusion.models import from_config
from macai.diffusion.tokenizer import ClipTokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
MODEL = RECIPES / "emoji"
COLOURS = ["red", "green", "blue", "orange", "purple", "brown", "black", "teal"]
THINGS = ["circle", "square", "triangle"]


def load(path: Path) -> ModuleType:
    name = f"emoji_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


sys.path.append(str(RECIPES / "data" / "emoji"))  # they import each other, as scripts do
make = load(RECIPES / "data" / "emoji" / "make.py")
score = load(RECIPES / "data" / "emoji" / "score.py")
style = load(RECIPES / "data" / "emoji" / "style.py")
lay_out = load(MODEL / "make.py")


def entry(name: str, *shorts: str, **keys: Any) -> dict[str, Any]:
    known = {
        "name": name,
        "short_names": list(shorts or [name.lower().replace(" ", "_")]),
        "category": "Symbols",
        "subcategory": "geometric",
        "has_img_google": True,
        "sort_order": 0,
        "unified": "1F600",
    }
    return known | keys


def drawing(colour: str, thing: str, *, size: int = 64, shaded: bool = False) -> Image.Image:
    picture = Image.new("RGBA", (size, size))
    pen = ImageDraw.Draw(picture)
    box = [size // 8, size // 6, size - size // 5, size - size // 8]
    if thing == "circle":
        pen.ellipse(box, colour)
    elif thing == "square":
        pen.rectangle(box, colour)
    else:
        pen.polygon([(box[0], box[3]), (size // 2, box[1]), (box[2], box[3])], colour)
    if shaded:
        light = Image.linear_gradient("L").resize((size, size))
        white = Image.new("RGBA", (size, size), "white")
        picture = Image.composite(Image.blend(picture, white, 0.5), picture, light)
    return picture


def png(picture: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Packages like the two of npm: 24 emoji, a copy of the first, a flag; one not in Fluent."""
    folder = tmp_path_factory.mktemp("npm")
    entries, google, fluent = [], {}, {}
    names = [(c, t) for c in COLOURS for t in THINGS]
    for number, (colour, thing) in enumerate([*names, ("red", "circle")]):
        copy = number == len(names)
        code = f"1F{number:03X}"
        name = "RED CIRCLE COPY" if copy else f"{colour} {thing}".upper()
        unified = {"sort_order": number, "unified": code, "image": f"{code}.png"}
        entries.append(entry(name, **unified))
        google[f"package/img/google/64/{code}.png"] = png(drawing(colour, thing))
        if number:
            big = drawing(colour, thing, size=256, shaded=True)
            fluent[f"package/assets/{code.lower()}.webp"] = png(big, "WEBP")
    entries.append(entry("FLAG", category="Flags", image="none.png"))
    google["package/emoji.json"] = json.dumps(entries).encode()
    return archive(folder / "google.tgz", google), archive(folder / "fluent.tgz", fluent)


@pytest.fixture(scope="module")
def data(packages: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("data") / "emoji"
    make.make(*packages, out)
    return out


def rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_captions_are_lower_case_words_and_say_the_colour_that_is_drawn() -> None:
    names = ["RED APPLE", "HEAVY BLACK HEART", "WAVING HAND SIGN", "CLOCK FACE ONE OCLOCK"]
    assert [c[0] for c in make.named([entry(name) for name in names])] == [
        *("red apple", "red heart", "waving hand", "clock face one o'clock")
    ]


def test_a_short_name_is_a_caption_when_no_other_emoji_has_it() -> None:
    entries = [entry("DOG FACE", "dog"), entry("DOG", "dog2"), entry("BALLOT", "vote", "+1", "o")]
    assert make.named(entries) == [("dog face",), ("dog",), ("ballot", "vote")]


def test_two_emoji_of_one_name_are_told_apart_or_refused() -> None:
    two = [entry("MAN IN TUXEDO", "person_in_tuxedo"), entry("MAN IN TUXEDO", "man_in_tuxedo")]
    assert [c[0] for c in make.named(two)] == ["person in tuxedo", "man in tuxedo"]
    with pytest.raises(ValueError, match="two emoji have one caption: bell"):
        make.named([entry("BELL", "bell"), entry("BELL", "bell")])


@pytest.mark.parametrize(
    "left_out",
    [
        entry("REGIONAL INDICATOR", category="Flags"),
        entry("HASH KEY", subcategory="keycap"),
        entry("WOMAN RUNNING", subcategory="person-activity"),
        entry("PERSON RUNNING FACING RIGHT", subcategory="person-activity"),
        entry("CLOCK FACE TWO-THIRTY"),
        entry("APPLE", has_img_google=False),
    ],
    ids=lambda e: e["name"],
)
def test_an_entry_that_repeats_others_is_left_out(left_out: dict[str, Any]) -> None:
    assert not make.is_wanted(left_out)
    assert make.is_wanted(entry("RED APPLE"))


def test_a_picture_seen_before_is_left_out_and_flags_are_too(data: Path) -> None:
    texts = {row["text"] for split in ("train", "valid") for row in rows(data / "noto" / split)}
    assert {f"{colour} {thing}" for colour in COLOURS for thing in THINGS} <= texts
    assert not {"red circle copy", "flag"} & texts


def test_each_word_of_a_held_out_caption_is_learnt_from_others(data: Path) -> None:
    learnt = [
        row["text"].split() for row in rows(data / "noto" / "train") if "," not in row["text"]
    ]
    held = rows(data / "noto" / "valid")
    assert 1 <= len(held) <= 4  # no more of one kind
    for row in held:
        for word in row["text"].split():
            assert sum(word in words for words in learnt) >= 2
    assert not {row["file_name"] for row in held} & {
        r["file_name"] for r in rows(data / "noto/train")
    }


def test_both_styles_hold_out_the_same_emoji_under_the_same_captions(data: Path) -> None:
    noto, fluent = rows(data / "noto" / "valid"), rows(data / "fluent" / "valid")
    assert [row for row in noto if row["file_name"] != "1f000.png"] == fluent
    assert len(list((data / "fluent").glob("*/*.png"))) == 23
    both = [p.name for p in (data / "both").glob("*/*.png")]
    assert len(both) == 47
    with Image.open(next((data / "fluent" / "train").glob("*.png"))) as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")


def test_the_same_packages_give_the_same_bytes(
    packages: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    make.make(*packages, tmp_path)
    files = sorted(p.relative_to(data) for p in data.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((data / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


def test_another_file_than_the_pinned_package_is_refused(packages: tuple[Path, Path]) -> None:
    with pytest.raises(SystemExit, match=r"google\.tgz: not emoji-datasource-google@16\.0\.0"):
        make.main(["--out", "x", "--google", str(packages[0]), "--fluent", str(packages[1])])


def pictures(*, shaded: bool = False) -> Any:
    drawn = [drawing(c, t, shaded=shaded) for c in COLOURS for t in THINGS]
    return np.stack([make.on_white(png(picture)) for picture in drawn])


NAMES = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]


@pytest.mark.parametrize("harm", list(score.HARMS))
def test_a_harmed_picture_is_still_nearest_to_itself(harm: str) -> None:
    gallery = score.Gallery.of(pictures(), [frozenset([name]) for name in NAMES])
    assert gallery.ranks(score.harmed(pictures(), score.HARMS[harm]), NAMES) == [1] * len(NAMES)


def test_a_picture_under_another_caption_ranks_by_its_distance() -> None:
    gallery = score.Gallery.of(pictures(), [frozenset([name, f"a {name}"]) for name in NAMES])
    picture = pictures()[:1]  # a red circle
    square, far = gallery.ranks(np.repeat(picture, 2, 0), ["a red square", "teal triangle"])
    assert 1 < square < far <= len(NAMES)
    with pytest.raises(ValueError, match="no emoji is called 'green cow'"):
        gallery.ranks(picture, ["green cow"])


def test_each_part_of_the_feature_weighs_the_same() -> None:
    gallery = score.Gallery.of(pictures(), [frozenset([name]) for name in NAMES])
    points = gallery.points
    for start, end in ((0, 192), (192, 704), (704, 768)):
        part = points[:, start:end]
        squares = ((part[:, None] - part[None]) ** 2).sum(-1)
        assert squares.mean() == pytest.approx(1)


def test_the_style_of_pictures_it_has_not_seen_is_told(data: Path, tmp_path: Path) -> None:
    learnt, fluents, _ = style.both_styles(data)
    gallery = score.gallery_of(data)
    style.StyleClassifier.fit(style.seen(gallery, learnt), fluents).save(tmp_path / "style.npz")
    found = style.StyleClassifier.read(tmp_path / "style.npz")
    for shaded in (False, True):
        moved = score.harmed(pictures(shaded=shaded), score.HARMS["shifted"])
        assert (found.is_fluent(style.described(gallery, moved)) == shaded).all()


def test_pictures_that_came_through_an_autoencoder_are_half_of_what_is_learnt(data: Path) -> None:
    learnt, fluents, fold = style.both_styles(data)
    points = style.seen(score.gallery_of(data), learnt)
    # Of these the style shows in one number alone, and against what the others say of it.
    misleading = np.zeros_like(points["plain"])
    misleading[:, -1] = np.where(fluents, 1.0, -1.0)
    points["autoencoded"] = misleading
    assert style.accuracy(points, fluents, fold)["autoencoded"] == 1
    found = style.StyleClassifier.fit(points, fluents)
    assert abs(found.weights[-1]) == np.abs(found.weights).max()


@pytest.mark.slow
def test_an_autoencoded_picture_is_the_same_and_softer() -> None:
    through = style.autoencoded(pictures(), RECIPES / "emoji-diffusion")
    assert through.shape == pictures().shape
    difference = np.abs(through.astype(int) - pictures()).mean()
    assert 0 < difference < 20  # it is the same picture, and a softer one


def test_a_score_is_of_the_right_captions_and_of_all_others(data: Path) -> None:
    learnt, fluents, _ = style.both_styles(data)
    gallery = score.gallery_of(data)
    judge = style.StyleClassifier.fit(style.seen(gallery, learnt), fluents)
    found = score.score(pictures(), NAMES, gallery, judge)
    assert (found.pictures, found.emoji, found.top_1, found.fluent) == (24, 24, 1.0, 0.0)
    # Each of the 24 has 9 others among its nearest ten, of 23.
    assert found.unrelated_top_10 == pytest.approx(9 / 23, abs=0.02)


def test_generated_pictures_are_scored_from_a_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(pictures()[0]).resize((128, 128)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "red circle"}\n')
    score.main(["--data", str(data), "--pictures", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["top_1"], found["unrelated_top_10"]) == (1, 1.0, 0.0)


def test_the_small_tokenizer_gives_captions_the_tokens_of_clip(data: Path, tmp_path: Path) -> None:
    captions = lay_out.captions_of(data)
    count = lay_out.make(captions, tmp_path)
    small, whole = ClipTokenizer.from_folder(tmp_path / "tokenizer"), ClipTokenizer.shipped()
    assert small.size == count < 700
    for caption in captions:
        assert small.tokens(small.encode(caption)) == whole.tokens(whole.encode(caption))
    assert small.decode(small.encode("a Xylophone")) == "a xylophone"  # in pieces, but whole


def test_the_shipped_tokenizer_and_sizes_go_together() -> None:
    config = read_json(MODEL / "text_encoder" / "config.json")
    tokenizer = ClipTokenizer.from_folder(MODEL / "tokenizer")
    assert tokenizer.size == config["vocab_size"]
    assert (tokenizer.start_id, tokenizer.end_id) == (
        config["bos_token_id"],
        config["eos_token_id"],
    )
    assert read_json(MODEL / "unet" / "config.json")["cross_attention_dim"] == config["hidden_size"]
    words = ["red", "apple", "heart", "firefighter", "smiling"]
    assert [len(tokenizer.encode(word)) for word in words] == [1] * len(words)


def test_the_whole_model_takes_no_more_than_12_megabytes_in_half_precision() -> None:
    weights = 0
    for part in ("text_encoder", "unet", "vae"):
        model = from_config(read_json(MODEL / part / "config.json"))
        weights += sum(array.size for _, array in tree_flatten(model.parameters()))
    assert 5_000_000 < weights < 5_950_000  # the headers and the tokenizer take the rest
