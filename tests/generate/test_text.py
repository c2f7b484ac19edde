import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from macai.generate.text import TextStream, decode
from tests.tiny import BEGIN, END, tiny_tokenizer

BYTE_LEVEL = PreTrainedTokenizerFast(
    tokenizer_object=tiny_tokenizer(), bos_token=BEGIN, eos_token=END
)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Llama's decoder: ▁ is a space, unknown characters are bytes, one leading space is cut."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz,.", "▁a", "▁the", "▁whale"]
    pairs = [("▁", "a")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=pairs,
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


SENTENCEPIECE = sentencepiece_like()


def stream(tokenizer, ids):
    text = TextStream(tokenizer)
    return [text.add(i) for i in ids] + [text.flush()]


TEXTS = [
    "Hello, world",
    " two  spaces   and a trailing one ",
    "  leading",
    "\n\nlines\n",
    "🙂🙃🐋 family 👩‍👩‍👧 flag 🇫🇷",
    "日本語のテスト",
    "é ñ ü",
    "don 't , clean . up ! these",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["bytes", "spm"])
def test_pieces_join_to_the_text_of_all_ids(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == decode(tokenizer, ids)
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_text_comes_back_as_it_was(text):
    assert "".join(stream(BYTE_LEVEL, BYTE_LEVEL.encode(text))) == text


@given(st.lists(st.integers(0, len(BYTE_LEVEL) - 1), max_size=40))
def test_any_byte_level_ids_stream_to_what_decoding_them_gives(ids):
    assert "".join(stream(BYTE_LEVEL, ids)) == decode(BYTE_LEVEL, ids)


@given(st.text(max_size=30))
def test_any_sentencepiece_text_streams_to_what_decoding_its_ids_gives(text):
    ids = SENTENCEPIECE.encode(text, add_special_tokens=False)
    pieces = stream(SENTENCEPIECE, ids)
    assert "".join(pieces) == decode(SENTENCEPIECE, ids)
    assert all(not piece.endswith("\ufffd") or "\ufffd" in text for piece in pieces)


def test_a_character_comes_whole_with_its_last_byte():
    ids = SENTENCEPIECE.encode("a🐋b", add_special_tokens=False)
    assert [piece for piece in stream(SENTENCEPIECE, ids) if piece] == ["a", "🐋", "b"]
    assert len(ids) == 6


def test_half_a_character_at_the_end_is_marked_once_the_text_is_over():
    whole = BYTE_LEVEL.encode("ab🐸", add_special_tokens=False)
    text = TextStream(BYTE_LEVEL)
    assert "".join(text.add(i) for i in whole[:-1]) == "ab"
    assert text.flush() == "\ufffd"
    assert text.flush() == ""


def test_bytes_after_a_character_do_not_take_it_back():
    bytes_of = {i: SENTENCEPIECE.convert_tokens_to_ids(f"<0x{i:02X}>") for i in range(256)}
    ids = [bytes_of[b] for b in "🐋".encode()] + [bytes_of[0xF0]]
    assert "".join(stream(SENTENCEPIECE, ids)) == "🐋\ufffd"


def test_special_tokens_have_no_text_and_keep_the_space_after_them():
    the, whale = (SENTENCEPIECE.convert_tokens_to_ids(t) for t in ("▁the", "▁whale"))
    ids = [the, SENTENCEPIECE.bos_token_id, whale]
    assert stream(SENTENCEPIECE, ids) == ["the", "", " whale", ""]
