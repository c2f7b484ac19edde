import pytest

from macai.coreml.bundle import write_bundle
from macai.coreml.licence import licence_files, licence_name
from macai.coreml.manifest import read_manifest
from macai.coreml.session import open_bundle
from macai.models.load import load_model


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n", "apache-2.0"),
        ("---\nlibrary: mlx\nlicense: 'mit' \n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: gemma\nlicense_link: LICENSE\n---\n", "gemma"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n---\n", ""),
        ("# A model\n\nlicense: mit\n", ""),
        ("---\nno end\nlicense: mit\n", ""),
        ("", ""),
    ],
)
def test_a_card_names_the_licence_at_its_beginning(card, name, tmp_path):
    (tmp_path / "README.md").write_text(card)
    assert licence_name(tmp_path) == name


def test_a_model_may_have_no_card(tmp_path):
    assert licence_name(tmp_path) == ""


def test_licence_files_have_many_names(tmp_path):
    kept = ["COPYING", "LICENCE.md", "LICENSE", "LICENSE-MODEL.txt", "NOTICE", "license.txt"]
    for name in (*kept, "README.md", "licensed.json", "noticeable"):
        (tmp_path / name).write_text("")
    (tmp_path / "LICENSES").mkdir()
    assert [f.name for f in licence_files(tmp_path)] == kept


def test_a_bundle_carries_the_licence(tiny_dir, tmp_path):
    model, folder = tmp_path / "model", tmp_path / "bundle"
    model.mkdir()
    folder.mkdir()
    for file in tiny_dir.iterdir():
        (model / file.name).symlink_to(file)
    (model / "LICENCE").write_text("Do as you like.")
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    options = {"name": "Tiny", "source": {"model": "tiny"}, "context": 64, "prefill": [8]}
    write_bundle(load_model(model, as_stored=True), folder, **options)
    assert (folder / "LICENCE").read_text() == "Do as you like."
    assert read_manifest(folder).source == {"model": "tiny", "license": "mit"}
    assert open_bundle(folder)[1].license == "mit"
    assert "| licence of the model | mit |" in (folder / "README.md").read_text()
