import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.tokenizer.folder import default_settings
from macai.diffusion.tokenizer.vocabulary import END, shipped_vocabulary, vocabulary_of
from macai.errors import FormatError, ModelError, UsageError
from tests.diffusion.tokenizer import folders

GOLDEN = json.loads(Path("tests/goldens/clip_tokenizer.json").read_text(encoding="utf-8"))
ROWS = GOLDEN["rows"]


TOKENIZER = ClipTokenizer.shipped()
SMALL = ClipTokenizer(vocabulary_of([("a", "b"), ("ab", "c</w>")]), default_settings(padding=END))


@pytest.fixture
def folder(tmp_path):
    """Every file there may be, of a vocabulary of 516 tokens."""
    folder = folders.write_kind("sd1", tmp_path / "tokenizer", SMALL)
    return folders.write(folder, added_tokens={"<style>": 516})


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_shipped_vocabulary_is_clip_s_byte_for_byte(tmp_path):
    TOKENIZER.write(tmp_path)
    # As published for openai/clip-vit-base-patch32, from which Apple's exporter takes both.
    vocab = "5047b556ce86ccaf6aa22b3ffccfc52d391ea4accdab9c2f2407da5b742d4363"
    assert sha256(tmp_path / "vocab.json") == vocab
    merges = "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"
    assert sha256(tmp_path / "merges.txt") == merges
    ids = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    large = json.dumps(ids, ensure_ascii=False).encode()  # openai/clip-vit-large-patch14
    assert hashlib.sha256(large).hexdigest().startswith("3f0c4f7d2086b61b")
    sd1 = json.dumps(ids, ensure_ascii=False, indent=2, sort_keys=True) + "\n"  # SD 1.5
    assert hashlib.sha256(sd1.encode()).hexdigest().startswith("e089ad92ba36837a")


def test_the_notice_says_whose_the_vocabulary_is():
    notice = Path("NOTICE").read_text(encoding="utf-8")
    assert "clip_merges.txt.gz" in notice
    assert "Copyright (c) 2021 OpenAI" in notice
    assert "Permission is hereby granted, free of charge" in notice


def test_ids_are_those_of_transformers_with_the_files_of_sd_1():
    assert len(ROWS) > 1000
    assert {text: TOKENIZER.encode(text) for text, *_ in ROWS} == {row[0]: row[1] for row in ROWS}


def test_ids_are_those_of_transformers_with_the_files_of_sd_2_and_xl():
    tokenizer = ClipTokenizer.shipped(padding="!")
    other = [row for row in ROWS if row[2] is not None]
    assert len(other) > 100  # every "!" is the padding token
    for text, sd1, sd2, _ in ROWS:
        assert tokenizer.encode(text) == (sd1 if sd2 is None else sd2), text


def test_a_folder_gives_the_ids_of_its_model(tmp_path):
    tokenizer = ClipTokenizer.from_folder(folders.write_kind("sd2", tmp_path))
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (49406, 49407, 0)
    assert tokenizer.max_length == 77
    for text, sd1, sd2, _ in ROWS[:300]:
        assert tokenizer.encode(text) == (sd1 if sd2 is None else sd2), text


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl-second", "bare"])
def test_a_padding_token_is_read_wherever_it_is_said(kind, tmp_path):
    tokenizer = ClipTokenizer.from_folder(folders.write_kind(kind, tmp_path / kind, SMALL))
    assert tokenizer.pad_id == (0 if kind in ("sd2", "xl-second") else SMALL.end_id)


def test_tokens_of_the_model_s_own_are_found_whole(tmp_path):
    added = ClipTokenizer.from_folder(folders.write_kind("added", tmp_path / "a"))
    assert added.encode("a <style> sks dog, <STYLE>")[1:3] == [49408, 49409]
    assert added.encode("<STYLE>") == [49408]  # compared in lower case, as it is not special
    assert added.size == 49410
    assert added.vocabulary.ids.keys() == shipped_vocabulary().ids.keys()


def test_a_short_prompt_is_padded_and_a_long_one_keeps_its_end():
    short, empty, long = TOKENIZER.ids(["a red apple", "", "a " * 100])
    assert short.tolist() == [49406, 320, 736, 3055] + [49407] * 73
    assert empty.tolist() == [49406] + [49407] * 76
    assert long.tolist() == [49406] + [320] * 75 + [49407]
    other = ClipTokenizer.shipped(padding="!").ids(["a red apple"])
    assert other.tolist() == [[49406, 320, 736, 3055, 49407] + [0] * 72]
    assert (other.dtype, other.shape) == (np.int32, (1, 77))
    assert TOKENIZER.ids([]).shape == (0, 77)


@given(st.text())
def test_ids_decode_to_text_of_the_same_ids(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.encode(TOKENIZER.decode(ids)) == ids


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ", max_size=60))
def test_plain_words_decode_to_themselves(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == " ".join(text.split())


def test_decoding_leaves_out_what_is_around_a_prompt():
    assert TOKENIZER.decode(TOKENIZER.ids(["Café, 日本!"])[0]) == "café , 日本 !"


def test_a_prompt_that_is_not_unicode_is_refused():
    for read in (TOKENIZER.encode, TOKENIZER.differs, lambda t: TOKENIZER.swift_ids([t])):
        with pytest.raises(UsageError, match="not valid Unicode at character 3"):
            read("ab\udcff")


def test_a_small_vocabulary_works_as_well(folder):
    for tokenizer in (SMALL, ClipTokenizer.from_folder(folder)):
        assert tokenizer.tokens(tokenizer.encode("abc ab")) == ["abc</w>", "a", "b</w>"]
        assert tokenizer.ids(["abc"]).tolist() == [[514, 513] + [515] * 75]
    assert (SMALL.size, tokenizer.size) == (516, 517)


def test_a_folder_that_lacks_something_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        ClipTokenizer.from_folder(tmp_path / "none")
    (folder / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"merges\.txt: No such file") as raised:
        ClipTokenizer.from_folder(folder)
    assert "tokenizer.json" in raised.value.hint
    (folder / "vocab.json").write_text('{"a": 0}')
    (folder / "merges.txt").write_text("")
    with pytest.raises(ModelError, match=r"has no '<\|startoftext\|>': it is not CLIP's"):
        ClipTokenizer.from_folder(folder)


BROKEN = [
    ("vocab.json", "{", "not JSON"),
    ("vocab.json", "[" * 100_000, "not JSON"),
    ("vocab.json", "[]", "not a JSON object"),
    ("vocab.json", "{}", "no tokens by name"),
    ("vocab.json", '{"a": "0"}', "the id of 'a' is 0"),
    ("vocab.json", '{"a": -1}', "the id of 'a' is -1"),
    ("vocab.json", '{"a": true}', "the id of 'a' is True"),
    ("vocab.json", '{"a": 99999999999}', "the id of 'a' is 99999999999"),
    ("merges.txt", "#version: 0.2\na b\nabc\n", "line 3 is not two tokens"),
    ("merges.txt", "a b c\n", "line 1 is not two tokens"),
    ("merges.txt", "q q\n", "needs 'qq'"),
    ("merges.txt", "a d\n", "needs 'ad'"),
    ("merges.txt", "qqqq q\n", "needs 'qqqq'"),
    ("tokenizer.json", "[1]", "not a JSON object"),
    ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "not a byte-pair tokenizer"),
    ("tokenizer.json", '{"model": 3}', "not a byte-pair tokenizer"),
    ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": 3}}', "merges is not a list"),
    ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": ["a"]}}', "'a' in model.merges"),
    ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": [[1, 2]]}}', "not two tokens"),
    ("tokenizer.json", '{"model": {"vocab": ["a"], "merges": []}}', "no tokens by name"),
    ("tokenizer_config.json", '{"pad_token": 3}', "'3' is not a token"),
    ("tokenizer_config.json", '{"pad_token": {"content": ""}}', "is not a token"),
    ("tokenizer_config.json", '{"model_max_length": "77"}', "model_max_length is '77'"),
    ("tokenizer_config.json", '{"model_max_length": 2}', "model_max_length is 2"),
    ("tokenizer_config.json", '{"model_max_length": NaN}', "model_max_length is nan"),
    ("tokenizer_config.json", '{"added_tokens_decoder": []}', "is not an object"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"0": {}}}', "is not a token"),
    ("added_tokens.json", '{"x": "many"}', "the id of 'x' is many"),
    ("added_tokens.json", '{"xyzzy": 50000}', "'xyzzy' has id 50000; it would be 516"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_file_that_is_not_what_its_name_says_is_refused(folder, name, content, message):
    if name == "merges.txt":
        content = content.replace("q q", "qq q") if message == "needs 'qq'" else content
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError) as raised:
        ClipTokenizer.from_folder(folder)
    assert message in raised.value.message
    assert str(folder) in raised.value.message


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "merges.txt").write_bytes(b"a \xff\n")
    with pytest.raises(FormatError, match=r"merges\.txt: not UTF-8"):
        ClipTokenizer.from_folder(folder)


def test_a_length_that_stands_for_none_is_clip_s(folder):
    config = folders.config(END) | {"model_max_length": 1000000000000000019884624838656}
    folders.write(folder, tokenizer_config=config)
    assert ClipTokenizer.from_folder(folder).max_length == 77


def test_what_is_written_is_read_back(folder, tmp_path):
    first = ClipTokenizer.from_folder(folder)
    first.write(tmp_path / "copy")
    again = ClipTokenizer.from_folder(tmp_path / "copy")
    assert again.vocabulary == first.vocabulary == SMALL.vocabulary


def test_a_special_token_with_a_name_of_its_own_is_taken(folder):
    pad = folders.named("<|pad|>", normalized=False)
    config = folders.config(END) | {"pad_token": pad, "added_tokens_decoder": {"516": pad}}
    folders.write(folder, tokenizer_config=config)
    tokenizer = ClipTokenizer.from_folder(folder)
    assert tokenizer.pad_id == 516
    assert tokenizer.encode("ab<|pad|>") == [*SMALL.encode("ab"), 516]
