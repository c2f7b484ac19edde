import base64
import importlib.resources
import io
import itertools
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from macai.errors import FormatError, ModelError
from macai.models.gguf.pretokenizers import PRE_TOKENIZERS
from macai.models.gguf.reader import GGUFFile
from macai.models.gguf.tokenizer import write_tokenizer
from macai.models.gguf.vocabulary import read_vocabulary

GOLDENS = Path(__file__).parents[2] / "goldens"


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


def build(folder: Path, **metadata: Any) -> Tokenizer:
    """Write the tokenizer of this `tokenizer.ggml.` metadata and open it."""
    values = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    for key in ("token_type", "scores"):
        if (name := f"tokenizer.ggml.{key}") in values:
            values[name] = np.array(values[name])
    file = GGUFFile(Path("model.gguf"), values, {})
    write_tokenizer(file, read_vocabulary(file), folder, max_length=128)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def byte_level(folder: Path, content: dict[str, Any], pre: str) -> Tokenizer:
    size = len(content["tokens"])
    return build(
        folder,
        model="gpt2",
        pre=pre,
        tokens=content["tokens"],
        token_type=content["types"],
        merges=content["merges"],
        bos_token_id=size - 2,
        eos_token_id=size - 1,
    )


def sentencepiece_like(folder: Path, content: dict[str, Any], **metadata: Any) -> Tokenizer:
    return build(
        folder,
        model="llama",
        tokens=content["tokens"],
        token_type=content["types"],
        scores=content["scores"],
        **metadata,
    )


def of_processor(pieces: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """The metadata a converter to GGUF writes for a sentencepiece model."""
    size = range(pieces.get_piece_size())
    kinds = [(pieces.is_unknown, 2), (pieces.is_control, 3), (pieces.is_unused, 5)]
    kinds.append((pieces.is_byte, 6))
    return {
        "tokens": [pieces.id_to_piece(i) for i in size],
        "types": [next((kind for is_, kind in kinds if is_(i)), 1) for i in size],
        "scores": [pieces.get_score(i) for i in size],
    }


def train(texts: list[str], **options: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def assert_same_ids(texts: list[str], found: list[list[int]], wanted: list[list[int]]) -> None:
    wrong = [(t, f, w) for t, f, w in zip(texts, found, wanted, strict=True) if f != w]
    assert not wrong, f"{len(wrong)} of {len(texts)}, first {wrong[0]}"


def is_composed(text: str) -> bool:
    return unicodedata.is_normalized("NFC", text)


BYTE_LEVEL = golden("gguf_pretokenizers.json")
PROVEN = [(name, group) for group in BYTE_LEVEL["groups"] for name in group["names"]]


@pytest.mark.parametrize(("pre", "group"), PROVEN, ids=[name for name, _ in PROVEN])
def test_byte_level_ids_are_those_of_llama_cpp(
    tmp_path: Path, pre: str, group: dict[str, Any]
) -> None:
    texts, ids = BYTE_LEVEL["texts"], group["ids"]
    # llama.cpp has no more than an approximation of tekken's pattern, and does not compose accents.
    alike = {"tekken": str.isascii, "qwen2": is_composed, "deepseek-r1-qwen": is_composed}
    if pre in alike:
        ids = [found for text, found in zip(texts, ids, strict=True) if alike[pre](text)]
        texts = [text for text in texts if alike[pre](text)]
    tokenizer = byte_level(tmp_path, BYTE_LEVEL, pre)
    assert_same_ids(texts, [tokenizer.encode(text).ids for text in texts], ids)


def test_qwen2_composes_accents(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, BYTE_LEVEL, "qwen2")
    decomposed = [text for text in BYTE_LEVEL["texts"] if not is_composed(text)]
    assert decomposed
    for text in decomposed:
        composed = unicodedata.normalize("NFC", text)
        assert tokenizer.encode(text).ids == tokenizer.encode(composed).ids


def test_every_pre_tokenizer_is_proven() -> None:
    assert sorted(name for name, _ in PROVEN) == sorted(PRE_TOKENIZERS)


def test_tekken_words_are_those_of_mistral() -> None:
    content = golden("gguf_tekken_words.json")
    cut = PRE_TOKENIZERS["tekken"].pre_tokenizer()
    for text, words in zip(content["texts"], content["words"], strict=True):
        spans = [span for _, span in cut.pre_tokenize_str(text)]
        assert [text[begin:end] for begin, end in spans] == words


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_are_those_of_llama_cpp(tmp_path: Path, prefix: bool) -> None:
    content = golden("gguf_sentencepiece_ids.json")
    options = {} if prefix else {"add_space_prefix": False}
    tokenizer = sentencepiece_like(tmp_path, content, **options)
    ids = content["with_prefix" if prefix else "without"]
    found = [tokenizer.encode(text).ids for text in content["texts"]]
    assert_same_ids(content["texts"], found, ids)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    texts = [text for text in BYTE_LEVEL["texts"][:80] if text and "\0" not in text]
    pieces = train(texts, vocab_size=1100, character_coverage=0.98)
    return pieces, sentencepiece_like(tmp_path_factory.mktemp("spm"), of_processor(pieces))


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_level(tmp_path_factory.mktemp("bpe"), BYTE_LEVEL, "smollm")


LETTERS = ["a", "b", "the", "ing", " ", "  ", "\n", "\t", "'", "1", "23", "==", "é", "e\u0301"]
LETTERS += ["日本", "😀", "\u200d", "\u2581", "\ufffd", "\ue000", "\x00", "\r\n", "ال", "-", "."]


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(LETTERS)).map("".join)))
def test_any_text_gives_the_ids_of_sentencepiece(trained: Any, text: str) -> None:
    pieces, tokenizer = trained
    # Only a GGUF file makes `<s>` inside a text a token: sentencepiece reads it as letters.
    if not any(mark in text for mark in ("<s>", "</s>", "<unk>")):
        assert tokenizer.encode(text, add_special_tokens=False).ids == pieces.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_from_sentencepiece_ids(trained: Any, text: str) -> None:
    _, tokenizer = trained
    if "\u2581" not in text:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize("seed", range(6))
def test_tokens_that_overlap_themselves_join_as_in_sentencepiece(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    atoms = [["a", "b", " "], ["a", "b", "c", "ab", "ba", "aa", " "], ["x", "xx", "xy", " "]]
    texts = ["".join(source.choices(atoms[seed % 3], k=source.randint(1, 60))) for _ in range(900)]
    size = 300 + 30 * (seed % 3)
    pieces = train(texts[:300], vocab_size=size, split_by_whitespace=bool(seed % 2))
    tokenizer = sentencepiece_like(tmp_path, of_processor(pieces))
    texts += [letter * n for letter in "abx " for n in range(1, 40)]
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert_same_ids(texts, found, pieces.encode(texts))


def joined_by_scores(text: str, scores: dict[str, float]) -> list[str]:
    """Return the pieces of a text by sentencepiece's rule, one join at a time."""
    pieces = list(text)
    while True:
        pairs = [left + right for left, right in itertools.pairwise(pieces)]
        ranked = [(-scores[pair], i) for i, pair in enumerate(pairs) if pair in scores]
        if not ranked:
            return pieces
        at = min(ranked)[1]
        pieces[at : at + 2] = [pairs[at]]


@pytest.mark.parametrize("seed", range(60))
def test_any_scores_join_as_the_rule_says(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    words = ["".join(w) for n in range(2, 7) for w in itertools.product("ab", repeat=n)]
    tokens = ["<unk>", "<s>", "</s>", "a", "b", *source.sample(words, source.randint(3, 24))]
    scores = source.sample(range(len(tokens)), len(tokens))
    content = {"tokens": tokens, "types": [2, 3, 3] + [1] * (len(tokens) - 3), "scores": scores}
    tokenizer = sentencepiece_like(tmp_path, content, add_space_prefix=False)
    rule = dict(zip(tokens, scores, strict=True))
    for _ in range(20):
        text = "".join(source.choices("ab", k=source.randint(1, 24)))
        found = tokenizer.encode(text, add_special_tokens=False).tokens
        assert found == joined_by_scores(text, rule)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_from_byte_level_ids(smollm: Tokenizer, text: str) -> None:
    assert smollm.decode(smollm.encode(text).ids, skip_special_tokens=False) == text


TOKENS = ["a", "b", "ab", "<s>", "</s>"]
GPT2 = {"model": "gpt2", "pre": "gpt-2", "tokens": TOKENS, "merges": ["a b"], "eos_token_id": 4}
LLAMA = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", "a"], "scores": [0.0] * 4}


@pytest.mark.parametrize(
    ("metadata", "error", "what"),
    [
        (GPT2 | {"pre": "bloom"}, ModelError, "pre-tokenizer 'bloom' is not known"),
        (GPT2 | {"model": "bert"}, ModelError, "a tokenizer of kind 'bert' is not supported"),
        (GPT2 | {"tokens": ["a", "b", "a"]}, FormatError, "two tokens have the text 'a'"),
        (GPT2 | {"tokens": ["a" * 2000]}, FormatError, "longer than 1024 characters"),
        (GPT2 | {"tokens": []}, FormatError, "eos_token_id' is 4, not a whole number below 0"),
        (GPT2 | {"merges": ["a c"]}, FormatError, "merge 'a c' is not of two tokens"),
        (GPT2 | {"merges": ["ab"]}, FormatError, "merge 'ab' is not of two tokens"),
        (GPT2 | {"eos_token_id": 5}, FormatError, "eos_token_id' is 5, not a whole number below 5"),
        (GPT2 | {"bos_token_id": "x"}, FormatError, "bos_token_id' is 'x', not a whole number"),
        (GPT2 | {"add_bos_token": True}, FormatError, "should start with a bos token"),
        (GPT2 | {"token_type": [1]}, FormatError, "not a list of 5 numbers"),
        ({k: v for k, v in GPT2.items() if k != "eos_token_id"}, FormatError, "no token ends"),
        ({k: v for k, v in GPT2.items() if k != "merges"}, FormatError, "merges' is missing"),
        (LLAMA | {"scores": [0.0]}, FormatError, "not a list of 4 numbers"),
        (LLAMA | {"tokens": ["a"], "scores": [0.0]}, FormatError, "no token ends a reply"),
        (LLAMA | {"scores": [float("nan")] * 4}, FormatError, "not a list of 4 numbers"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_one_clear_error(
    tmp_path: Path, metadata: dict[str, Any], error: type[Exception], what: str
) -> None:
    with pytest.raises(error) as caught:
        build(tmp_path, **metadata)
    assert what in str(caught.value)


def test_an_empty_token_gets_the_name_llama_cpp_gives_it(tmp_path: Path) -> None:
    tokenizer = build(tmp_path, **GPT2 | {"tokens": ["a", "", "ab", "<s>", "b"]})
    assert tokenizer.id_to_token(1) == "[EMPTY_1]"


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_bos_and_eos_are_added_as_the_metadata_says(tmp_path: Path, bos: bool, eos: bool) -> None:
    options = {"bos_token_id": 3, "add_bos_token": bos, "add_eos_token": eos}
    tokenizer = build(tmp_path, **GPT2 | options)
    assert tokenizer.encode("ab").ids == [3] * bos + [2] + [4] * eos
    pair = tokenizer.encode("ab", "a").ids
    assert pair == [3] * bos + [2] + [4] * eos + [3] * bos + [0] + [4] * eos


def test_control_tokens_are_skipped_in_text_and_user_defined_ones_are_not(tmp_path: Path) -> None:
    tokens = {"tokens": ["a", "<|x|>", "<|y|>"], "token_type": [1, 3, 4], "merges": []}
    tokenizer = build(tmp_path, **GPT2 | tokens | {"eos_token_id": 1})
    ids = tokenizer.encode("a<|x|>a<|y|>").ids
    assert ids == [0, 1, 0, 2]
    assert tokenizer.decode(ids) == "aa<|y|>"


def mistral_file(name: str) -> Path:
    """Return a tokenizer that the package mistral-common ships."""
    return Path(str(importlib.resources.files("mistral_common") / "data" / name))


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.model.v1",
        "mistral_instruct_tokenizer_240216.model.v2",
        "mistral_instruct_tokenizer_240323.model.v3",
    ],
)
def test_mistral_ids_are_those_of_sentencepiece(tmp_path: Path, name: str) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(mistral_file(name)))
    tokenizer = sentencepiece_like(tmp_path, of_processor(pieces))
    source = random.Random(0)
    texts = [*BYTE_LEVEL["texts"], *(letter * n for letter in " -=a_.\n#" for n in range(1, 100))]
    texts += ["".join(source.choices(LETTERS, k=source.randint(1, 40))) for _ in range(2000)]
    # sentencepiece reads the text of a control token as letters, llama.cpp as the token.
    size = range(pieces.get_piece_size())
    controls = [pieces.id_to_piece(i) for i in size if pieces.is_control(i) or pieces.is_unknown(i)]
    texts = [text for text in texts if not any(control in text for control in controls)]
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert_same_ids(texts, found, pieces.encode(texts))


@pytest.mark.oracle
def test_tekken_ids_are_those_of_tiktoken(tmp_path: Path) -> None:
    import tiktoken

    file = json.loads(mistral_file("tekken_240911.json").read_text(encoding="utf-8"))
    special = file["config"]["default_num_special_tokens"]
    size = file["config"]["default_vocab_size"] - special
    ranks = {base64.b64decode(e["token_bytes"]): e["rank"] for e in file["vocab"][:size]}
    oracle = tiktoken.Encoding(
        "tekken", pat_str=file["config"]["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
    letters = dict(enumerate(bytes_to_letters()))
    spelt = {token: "".join(letters[b] for b in token) for token in ranks}
    tokenizer = build(
        tmp_path,
        model="gpt2",
        pre="tekken",
        tokens=[f"<special {i}>" for i in range(special)] + list(spelt.values()),
        token_type=[3] * special + [1] * size,
        merges=[" ".join(spelt[p] for p in cut(token, ranks)) for token in ranks if len(token) > 1],
        bos_token_id=1,
        eos_token_id=2,
    )
    for text in BYTE_LEVEL["texts"]:
        wanted = [special + i for i in oracle.encode(text, disallowed_special=())]
        assert tokenizer.encode(text).ids == [1, *wanted]


def bytes_to_letters() -> list[str]:
    """Return the letter that byte-level BPE writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def cut(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens whose merge is `token`: merge its bytes by rank until two are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [left + right for left, right in itertools.pairwise(parts)]
        at = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        parts[at : at + 2] = [pairs[at]]
    return parts[0], parts[1]
