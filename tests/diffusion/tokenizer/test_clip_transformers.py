import random

import pytest

from macai.diffusion.tokenizer import ClipTokenizer
from tests.diffusion.tokenizer import clip_texts, folders

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers")

OWN = ["sks dog SKS <style> <STYLE> <a> <A>x sksx", "SKS   b", "a<|EndOfText|><style>!sks!"]


def random_texts(count):
    source = random.Random()
    print(seed := source.randrange(2**32))
    source.seed(seed)
    letters = [chr(c) for c in (*range(0x20, 0x250), *range(0x300, 0x400), *range(0x2000, 0x2070))]
    atoms = [*clip_texts.ATOMS, *letters]
    return ["".join(source.choices(atoms, k=source.randint(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("kind", folders.KINDS)
@pytest.mark.filterwarnings("ignore")
def test_ids_are_those_of_transformers_whatever_the_folder(kind, tmp_path):
    folders.write_kind(kind, tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = ClipTokenizer.from_folder(tmp_path)
    texts = clip_texts.texts() + OWN + random_texts(200)
    padded = theirs(texts, padding="max_length", max_length=77, truncation=True).input_ids
    whole = theirs(texts, add_special_tokens=False).input_ids
    assert (ours.pad_id, ours.size) == (theirs.pad_token_id, len(theirs))
    assert ours.ids(texts).tolist() == padded
    for text, ids in zip(texts, whole, strict=True):
        assert ours.encode(text) == ids, text
        if kind not in ("added", "decoder-added"):
            decoded = theirs.decode(ids, skip_special_tokens=True).strip(" ")
            assert ours.decode(ids).strip() == decoded.strip(), text


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_what_is_written(tmp_path):
    ours = ClipTokenizer.shipped()
    ours.write(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert theirs.get_vocab() == ours.vocabulary.ids
