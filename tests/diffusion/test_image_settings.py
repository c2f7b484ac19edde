import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.diffusion.image_settings import MAX_TEXT, ImageSettings, UsedFile
from macai.errors import FormatError, UsageError

SHA = "ab" * 32
SETTINGS = ImageSettings(
    prompt="a (red:1.2) apple",
    negative="rain, fog",
    width=512,
    height=768,
    steps=25,
    guidance=7.5,
    scheduler="dpm++2m-karras",
    seed=42,
    rng="torch",
    model="sd15",
    model_hash="0123456789abcdef",
    strength=0.75,
    image=UsedFile(name="in.png", sha256=SHA),
    loras=(UsedFile(name="style.safetensors", sha256=SHA, scale=0.8),),
    others={"hires": 2, "vae": None, "tile": True, "x": 0.5, "y": "z"},
)


def test_settings_are_read_back_as_they_were_written():
    text = SETTINGS.to_json()
    assert ImageSettings.from_json(text, source="a.png") == SETTINGS
    assert text.isascii()
    assert json.loads(text)["schema"] == 1
    plain = replace(SETTINGS, negative=None, image=None, loras=(), others={}, strength=None)
    assert ImageSettings.from_json(plain.to_json(), source="a.png") == plain


FLOATS = st.floats(0, 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FILES = st.builds(UsedFile, name=NAMES, sha256=st.just(SHA), scale=FLOATS)


@given(
    st.builds(
        ImageSettings,
        prompt=NAMES,
        negative=st.none() | NAMES,
        width=st.sampled_from([8, 512]),
        height=st.just(64),
        steps=st.integers(1, 100),
        guidance=st.floats(-10, 30),
        scheduler=NAMES,
        seed=st.integers(0, 2**64 - 1),
        rng=NAMES,
        model=NAMES,
        model_hash=NAMES,
        eta=st.none() | FLOATS,
        weighted=st.booleans(),
        mask=st.none() | FILES,
        controls=st.lists(FILES, max_size=3).map(tuple),
        others=st.dictionaries(NAMES, st.none() | FLOATS | st.booleans() | NAMES, max_size=3),
    )
)
def test_any_settings_are_read_back(settings):
    assert ImageSettings.from_json(settings.to_json(), source="a.png") == settings
    assert settings.prompt.replace("\0", "") in settings.parameters()


def test_parameters_are_those_of_stable_diffusion_webui():
    assert SETTINGS.parameters().split("\n") == [
        "a (red:1.2) apple <lora:style:0.8>",
        "Negative prompt: rain, fog",
        "Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 42, Size: 512x768, "
        "Model hash: 0123456789, Model: sd15, Denoising strength: 0.75, RNG: CPU, "
        f"Version: macai {SETTINGS.version}",
    ]
    other = replace(SETTINGS, negative=None, loras=(), strength=None, clip_skip=1)
    other = replace(other, scheduler="swift", rng="cuda", model='a, "b": c')
    lines = other.parameters().split("\n")
    assert lines[0] == "a (red:1.2) apple"
    assert len(lines) == 2
    for part in ('Model: "a, \\"b\\": c"', "Clip skip: 2", "RNG: NV", "Sampler: swift"):
        assert part in lines[1]
    assert "strength" not in lines[1]


def changed(**values):
    value = json.loads(SETTINGS.to_json()) | values
    return json.dumps({k: v for k, v in value.items() if v is not ...})


HOSTILE = [
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('{"schema": 1, "seed": ' + "9" * 5000 + "}", "not JSON"),
    ("[1]", "not a JSON object"),
    ("{}", "no schema number"),
    (changed(schema="1"), "no schema number"),
    (changed(schema=True), "no schema number"),
    (changed(schema=0), "no schema number"),
    (changed(schema=2), "schema 2, and this macai knows 1"),
    (changed(prompt=...), "no prompt"),
    (changed(prompt=3), "prompt is 3"),
    (changed(prompt=None), "prompt is None"),
    (changed(prompt="\ud800"), "prompt is '\\\\ud800'"),
    (changed(width="512"), "width is '512'"),
    (changed(width=512.0), "width is 512.0"),
    (changed(width=True), "width is True"),
    (changed(width=2**15), "width is 32768"),
    (changed(height=0), "height is 0"),
    (changed(steps=10**6), "steps is 1000000"),
    (changed(seed=-1), "seed is -1"),
    (changed(seed=2**64), "seed is 18446744073709551616"),
    (changed(guidance="NaN"), "guidance is 'NaN'"),
    (changed(guidance=1e300), "guidance is 1e\\+300"),
    (changed(guidance=10**400), "guidance is 1000"),
    (changed(strength=1.5), "strength is 1.5"),
    (changed(weighted=1), "weighted is 1"),
    (changed(image="in.png"), "image is not a JSON object"),
    (changed(image={"name": "a"}), "image: no sha256"),
    (changed(image={"name": "a", "sha256": 3}), "image: sha256 is 3"),
    (changed(image={"name": "a", "sha256": "", "x": 1}), "image: unknown setting 'x'"),
    (changed(loras={}), "loras is not a list"),
    (changed(loras=[3]), r"loras\[0\] is not a JSON object"),
    (changed(others=[]), "others is not a JSON object"),
    (changed(others={"a": []}), r"others\.a is \[\]"),
    (changed(others={"a": {"b": 1}}), r"others\.a is"),
    (changed(__class__="x"), "unknown setting '__class__'"),
    (SETTINGS.to_json().replace("7.5", "NaN"), "not JSON"),
    (SETTINGS.to_json().replace("7.5", "-Infinity"), "not JSON"),
    (SETTINGS.to_json().replace("7.5", "1e999"), "guidance is inf"),
    (changed(prompt="x" * MAX_TEXT), "characters long"),
]


@pytest.mark.parametrize(("text", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_settings_that_are_wrong_are_refused_by_name(text, message):
    with pytest.raises(FormatError, match=message) as raised:
        ImageSettings.from_json(text, source="a.png")
    assert raised.value.message.startswith("a.png")
    assert len(raised.value.message) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(json.loads(SETTINGS.to_json()))), JSON, max_size=4))
def test_any_values_are_read_or_refused_and_nothing_else(values):
    try:
        settings = ImageSettings.from_json(changed(**values), source="a.png")
    except FormatError:
        return
    assert ImageSettings.from_json(settings.to_json(), source="a.png") == settings


def test_numbers_that_are_not_finite_are_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(SETTINGS, guidance=float("nan")).to_json()


def test_a_used_file_is_known_by_its_name_and_content(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    used = UsedFile.of(tmp_path / "a.bin", scale=0.5)
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert used == UsedFile(name="a.bin", sha256=sha, scale=0.5)
    with pytest.raises(UsageError, match="No such file"):
        UsedFile.of(tmp_path / "none")
