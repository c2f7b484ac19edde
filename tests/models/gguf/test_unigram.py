"""Unigram tokenizers against sentencepiece, on small models trained here."""

import io
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from macai.errors import FormatError
from macai.models.gguf.reader import GGUFFile
from macai.models.gguf.tokenizer import write_tokenizer
from macai.models.gguf.vocabulary import read_vocabulary

TEXTS = json.loads(
    (Path(__file__).parents[2] / "goldens" / "gguf_pretokenizers.json").read_text(encoding="utf-8")
)["texts"]
LETTERS = ["a", "b", "the", "ing", " ", "  ", "\n", "\t", "'", "1", "23", "==", "é", "e\u0301"]
LETTERS += ["日本", "😀", "\u200d", "\u2581", "\ufffd", "\ue000", "\x00", "\x01", "\r\n", "ال"]
LETTERS += ["-", ".", "<0x41>", "<", "0x", "s>", "ﬁ", "①", "\uff21", "각", "½", "\u3000", "\u00a0"]
MARKED = ["ﬁ\u0301", "ｶﾞ", "q\u0323\u0307", "\u1100\u1161\u11a8"]
"""Clusters that `normalizers.Precompiled` normalises in a way of its own."""
IDENTITY, NFKC = "identity", "nmt_nfkc"


def train(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS[:80] if text and "\0" not in text]),
        model_writer=model,
        model_type="unigram",
        hard_vocab_limit=False,
        character_coverage=0.98,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def metadata_of(model: bytes, **changes: Any) -> dict[str, Any]:
    """What a converter to GGUF writes for a sentencepiece model, below `tokenizer.ggml.`."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    rules = proto.normalizer_spec
    metadata = {
        "model": "t5",
        "tokens": [piece.piece for piece in proto.pieces],
        "token_type": np.array([piece.type for piece in proto.pieces]),
        "scores": np.array([piece.score for piece in proto.pieces], np.float32),
        "bos_token_id": proto.trainer_spec.bos_id,
        "eos_token_id": proto.trainer_spec.eos_id,
        "unknown_token_id": proto.trainer_spec.unk_id,
        "add_space_prefix": rules.add_dummy_prefix,
        "remove_extra_whitespaces": rules.remove_extra_whitespaces,
        "add_eos_token": False,
    }
    if rules.precompiled_charsmap:
        metadata["precompiled_charsmap"] = np.frombuffer(rules.precompiled_charsmap, np.uint8)
    return metadata | changes


def build(folder: Path, metadata: dict[str, Any]) -> Tokenizer:
    file = GGUFFile(
        Path("model.gguf"), {f"tokenizer.ggml.{key}": v for key, v in metadata.items()}, {}
    )
    write_tokenizer(file, read_vocabulary(file), folder, max_length=128)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def nasty(amount: int, extra: tuple[str, ...] = ()) -> list[str]:
    source = random.Random(0)
    letters = [*LETTERS, *extra]
    texts = [*TEXTS, *("".join(source.choices(letters, k=n % 20 + 1)) for n in range(amount))]
    # Only a GGUF file makes `<s>` inside a text a token: sentencepiece reads it as letters.
    return [t for t in texts if not any(mark in t for mark in ("<s>", "</s>", "<unk>"))]


def has_cluster(text: str) -> bool:
    """Whether letters of `text` are one to `normalizers.Precompiled`."""
    return "\r\n" in text or any(
        unicodedata.category(c).startswith("M")
        or c in "\u200d\uff9e\uff9f"
        or "\u1100" <= c <= "\u11ff"
        or "\U0001f3fb" <= c <= "\U0001f3ff"
        for c in text
    )


def assert_same_ids(texts: list[str], tokenizer: Tokenizer, model: bytes) -> None:
    """Two ways to cut a text of one score are both right: sums in float32 and float64 differ."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    ties = 0
    for text in texts:
        found = tokenizer.encode(text, add_special_tokens=False).ids
        wanted = pieces.encode(text)
        if found != wanted:
            sums = [sum(proto.pieces[i].score for i in ids) for ids in (found, wanted)]
            assert abs(sums[0] - sums[1]) < 1e-5 * abs(sums[0]), (text, found, wanted)
            ties += 1
    assert ties < len(texts) / 100


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_ids_are_those_of_sentencepiece(
    tmp_path: Path, byte_fallback: bool, trim: bool, prefix: bool
) -> None:
    model = train(
        vocab_size=900 if byte_fallback else 600,
        byte_fallback=byte_fallback,
        normalization_rule_name=IDENTITY,
        remove_extra_whitespaces=trim,
        add_dummy_prefix=prefix,
    )
    tokenizer = build(tmp_path, metadata_of(model))
    assert_same_ids(nasty(500, (*MARKED, "\uff1cs\uff1e")), tokenizer, model)


@pytest.mark.parametrize(
    ("byte_fallback", "trim", "prefix"),
    [(True, True, True), (False, False, True), (True, False, False)],
)
def test_ids_with_a_normaliser_are_those_of_sentencepiece(
    tmp_path: Path, byte_fallback: bool, trim: bool, prefix: bool
) -> None:
    model = train(
        vocab_size=900 if byte_fallback else 600,
        byte_fallback=byte_fallback,
        normalization_rule_name=NFKC,
        remove_extra_whitespaces=trim,
        add_dummy_prefix=prefix,
    )
    tokenizer = build(tmp_path, metadata_of(model))
    # The normaliser makes `<s>` of the wide letters, which must not become the token.
    wide = "a\uff1cs\uff1eb"
    assert 1 not in tokenizer.encode(wide).ids
    texts = nasty(1000, ("\uff1cs\uff1e",))
    alike = [wide, "e\u0301", *(text for text in texts if not has_cluster(text))]
    assert len(alike) > 300
    assert_same_ids(alike, tokenizer, model)


def test_any_text_comes_back_from_bytes_and_pieces(tmp_path: Path) -> None:
    options = {"normalization_rule_name": IDENTITY, "remove_extra_whitespaces": False}
    model = train(vocab_size=900, byte_fallback=True, **options)
    tokenizer = build(tmp_path, metadata_of(model))
    for text in nasty(500, tuple(MARKED)):
        if "\u2581" not in text:
            assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_padding_of_a_vocabulary_is_never_read_and_changes_no_penalty(tmp_path: Path) -> None:
    model = train(vocab_size=600, normalization_rule_name=IDENTITY)
    plain = metadata_of(model)
    padded = plain | {
        "tokens": [*plain["tokens"], "[PAD]", "quic"],
        "token_type": np.array([*plain["token_type"], 5, 5]),
        "scores": np.array([*plain["scores"], -10000.0, 100.0]),
    }
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    built = build(one, plain), build(two, padded)
    for text in [*nasty(200), "quite [PAD] quick"]:
        ids, again = (tokenizer.encode(text).ids for tokenizer in built)
        assert ids == again


TINY = {
    "model": "t5",
    "tokens": ["<pad>", "</s>", "<unk>", "\u2581", "a", "b", "ab", "[USER]"],
    "token_type": np.array([3, 3, 2, 1, 1, 1, 1, 4]),
    "scores": np.array([0.0, 0.0, 0.0, -2.0, -3.0, -3.0, -4.0, -1000.0]),
}


def test_what_the_metadata_leaves_out_is_as_in_llama_cpp(tmp_path: Path) -> None:
    tokenizer = build(tmp_path, TINY)
    assert tokenizer.encode(" abx  [USER]a").ids == [3, 6, 2, 3, 3, 7, 4, 1]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == (None, "</s>")
    assert (config["unk_token"], config["pad_token"]) == ("<unk>", "<pad>")


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_bos_and_eos_are_added_as_the_metadata_says(tmp_path: Path, bos: bool, eos: bool) -> None:
    options = {"bos_token_id": 0, "add_bos_token": bos, "add_eos_token": eos}
    tokenizer = build(tmp_path, TINY | options)
    assert tokenizer.encode("ab").ids == [0] * bos + [6] + [1] * eos


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"precompiled_charsmap": np.frombuffer(b"\x09\0\0\0ab", np.uint8)}, "cannot be read"),
        ({"precompiled_charsmap": "nfkc"}, "'nfkc', not an array of bytes"),
        ({"precompiled_charsmap": np.zeros(9, np.float32)}, "not an array of bytes"),
        ({"scores": np.zeros(3)}, "not a list of 8 numbers"),
        (
            {"tokens": ["a", "b"], "token_type": np.ones(2), "scores": np.ones(2)},
            "without an unknown token",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_one_clear_error(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(FormatError, match=what):
        build(tmp_path, TINY | changes)


def test_a_llama_with_a_unigram_tokenizer_converts(
    tiny_gguf: Callable[..., Any], convert: Callable[..., Path]
) -> None:
    model = train(vocab_size=600, normalization_rule_name=NFKC)
    tiny = tiny_gguf()
    content = metadata_of(model)
    for key in ("tokenizer.ggml.pre", "tokenizer.ggml.merges"):
        del tiny.metadata[key]
    tiny.metadata |= {
        f"tokenizer.ggml.{key}": value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in content.items()
        if key != "precompiled_charsmap"
    }
    tiny.metadata["tokenizer.ggml.precompiled_charsmap"] = bytes(content["precompiled_charsmap"])
    rows = np.random.default_rng(0).standard_normal((len(content["tokens"]), 64), np.float32)
    tiny.tensors["token_embd.weight"] = rows
    folder = convert(tiny)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    text = "  Ｗｉｄｅ letters,  and ﬁgures ① "
    assert tokenizer.encode(text) == pieces.encode(text)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == len(rows)
