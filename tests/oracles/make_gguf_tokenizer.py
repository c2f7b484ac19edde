"""Write the token ids that llama.cpp gives to hard texts.

Oracles: llama.cpp as built into the wheel xllamacpp; for tekken, of which llama.cpp has only an
approximation, the pattern in Mistral's own tekken.json, matched by the package regex. Their
versions are written into the goldens.

    pip install xllamacpp==2026.10.11549 gguf numpy tokenizers sentencepiece regex
    pip download --no-deps mistral-common==1.8.0   # unzip mistral_common/data/tekken_240911.json
    python tests/oracles/make_gguf_tokenizer.py SmolLM2-135M-Instruct.Q4_1.gguf tekken_240911.json

gguf_smollm2_ids.json: SmolLM2's own tokenizer. gguf_pretokenizers.json: a vocabulary whose merges
join across words, so that every wrong cut between words shows in the ids, under each
`tokenizer.ggml.pre`. gguf_sentencepiece_ids.json: a small sentencepiece model with control and
user-defined tokens. gguf_tekken_words.json: the words of each text.
"""

import importlib.metadata
import io
import json
import random
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import regex
import sentencepiece
import tokenizers
import xllamacpp

GOLDENS = Path(__file__).parents[1] / "goldens"

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "Hello, world!",
    " Hello",
    "Hello ",
    "  two spaces  between  words  ",
    "the quick brown fox jumps over the lazy dog",
    "don't can't I'll we've you're it's he'd I'm",
    "DON'T CAN'T I'LL WE'VE YOU'RE IT'S HE'D I'M",
    "'LL 's 'Ve 'rE 'D 'm ' 'x ''s",
    "a'b'c''d'''e",
    "it’s “quoted” ‘text’ — dash – hyphen-ated…",
    "'",
    '"',
    "`",
    "''",
    '""',
    "1",
    "12",
    "123",
    "1234",
    "12345678901234567890",
    "3.14159 -2,718 +1e-5 0x1F 1,000,000.00 1/2",
    "a1b22c333d4444",
    "½ ² ³ Ⅷ ① ٣٤٥ १२३ 一二三 ௧௨",
    "def f(x):\n\treturn x ** 2  # square\n\n\nclass A:\n    pass\n",
    "\t\tif (a && b) {\n\t\t\tfoo[i++] = *p->q; // ok\n\t\t}\n",
    "for(int i=0;i<n;++i){a[i]^=b[i]|c[i]&~d[i];}",
    '<html><body class="x">&nbsp;</body></html>',
    "SELECT * FROM t WHERE a='b' AND c<>1;",
    "x = {'a': [1, 2, 3], \"b\": None}",
    "https://example.com/a/b?c=d&e=%20f#g user@example.org",
    "\r\n",
    "line one\r\nline two\r\n\r\nline four\n\n\nline seven\r",
    "\n\n\n\n",
    " \n \n  \n   \n",
    "\t \t \n\t",
    "trailing newline\n",
    "\n leading newline and space",
    "     five",
    "                                                  fifty",
    "a\u00a0b\u2003c\u200bd\u3000e\u2028f\u2029g\u0085h",
    "😀",
    "😀😃😄 text 🎉!",
    "👩‍👩‍👧‍👦 family 👨🏽‍💻 coder 🏳️‍🌈 flag 🇩🇪🇯🇵",
    "❤️ ☺︎ ✔️ 1️⃣",
    "日本語のテキスト。これはテストです！",
    "中文字符测试，没有空格。你好，世界！",
    "한국어 텍스트 테스트입니다.",
    "ภาษาไทยไม่มีช่องว่าง",
    "हिन्दी में पाठ और संयुक्ताक्षर क्ष त्र ज्ञ",
    "مرحبا بالعالم، هذا نص عربي.",
    "مَرْحَبًا بِالعَالَمِ",
    "שלום עולם",
    "Привет, мир! Ёлка и ещё ЪЫЬ",
    "Ελληνικά Ωμέγα ΑΒΓ",
    "Tiếng Việt có dấu",
    "naïve café résumé Zürich straße ĲSSELMEER ŒUVRE",
    "cafe\u0301 e\u0301\u0302\u0303 \u0301alone a\u0308o\u0308u\u0308",
    "Z̷̡͍͓a̶̢̛l̵͔̀g̸̰̈́o̵͇͝",
    "ﬁ ﬂ ﬃ Å Å ① ㎏ ｆｕｌｌｗｉｄｔｈ ＡＢＣ",
    "CamelCase snake_case SCREAMING_SNAKE kebab-case mixedCASEword iPhone XMLHttpRequest",
    "ÀÉÎ Àéî àÉÎ ǅ ǈ ʰ ª º",
    "\x00",
    "a\x00b\x01c\x02d\x1be\x7ff",
    "\x07\x08\x0b\x0c\x0e\x1f",
    "\ufeffBOM first",
    "\u202eright to left\u202c \u200e\u200f marks",
    "replacement \ufffd\ufffd char",
    "private \ue000\uf8ff use \U000f0000 \U0010fffd",
    "noncharacters \ufffe \uffff \U0001ffff",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 300,
    "ab" * 100,
    "aaa aa aaaa a aaaaa aaaaaa",
    "!" * 67,
    "=" * 31 + "-" * 17 + "_" * 9 + "*" * 5,
    "?!?! ... ,,, ;;; :-) ^_^ ¯\\_(ツ)_/¯",
    "$100 €200 £300 ¥400 ₿5 50% 10° ±1 ×2 ÷3 √4 ∞ ≠ ≤ ∑ ∫",
    "a+b=c <=> d~e|f^g`h",
    "/usr/local/bin C:\\Windows\\System32 ~/.config",
    "end/of/line/\n//\n/",
    "#hashtag @mention $cash &amp;",
    "Mr. O'Neill's dog's 'bone' wasn't the dogs' own.",
    "word\u2581with \u2581 lower one eighth block\u2581",
    "<0x0A> <0xFF> <unk> <s> </s> <pad>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text<|im_end|>text <|im_end|> text",
    "<|endoftext|><|endoftext|> <|im_start|>",
    "<|im_start <|im_start| |im_start|> <|IM_START|> <||im_start|>",
    "a <repo_name>x/y<file_sep>z.py<gh_stars>3 <filename><reponame>",
]

ATOMS = [
    *[
        "a",
        "b",
        "the",
        "ing",
        "THE",
        "Th",
        "x",
        "é",
        "e\u0301",
        "Ж",
        "日本",
        "語",
        "ا",
        "ل",
        "\u064e",
    ],
    *[" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200d", "\u200b", "\x00", "\x1b"],
    *["'", "'s", "'LL", "’", '"', "1", "23", "456", "٣", "½", ".", ",", "...", "/", "\\", "_", "-"],
    *[
        "==",
        "(",
        ")",
        "$",
        "+",
        "`",
        "^",
        "|",
        "<",
        ">",
        "😀",
        "🏽",
        "❤️",
        "\u2581",
        "\ufffd",
        "\ue000",
    ],
    *["<|im_start|>", "<|im_end|>", "<s>", "[USER]"],
]


def random_texts(count: int) -> list[str]:
    """Atoms of few or many kinds in any order."""
    source = random.Random(7)
    texts = []
    for _ in range(count):
        kinds = source.sample(ATOMS, source.randint(2, 8)) if source.random() < 0.6 else ATOMS
        texts.append("".join(source.choices(kinds, k=source.randint(1, 24))))
    return texts


TEXTS += random_texts(60)

GROUPS = [
    ["default"],
    ["gpt-2"],
    ["refact", "smollm", "starcoder"],
    ["falcon3", "llama-bpe", "llama-v3", "llama3"],
    ["smaug-bpe"],
    ["deepseek-r1-qwen", "qwen2"],
    ["seed-coder"],
    ["tekken"],
]
"""Pre-tokenizers that llama.cpp treats alike."""


class LlamaCpp:
    """A llama.cpp server in this process, asked for token ids only."""

    def __init__(self, path: Path) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 256
        parameters.warmup = False
        parameters.n_gpu_layers = 0
        parameters.port = 18099
        parameters.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(parameters)

    def ids(self, text: str) -> list[int]:
        body = {"content": text, "add_special": True, "parse_special": True}
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)["tokens"]


def joining_vocabulary() -> tuple[list[str], list[str]]:
    """Byte-level tokens and merges learnt from the texts as whole words."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1600,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text in TEXTS for _ in range(2)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return [*tokens, "<|bos|>", "<|im_end|>"], [" ".join(pair) for pair in model["merges"]]


def small_sentencepiece() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a BPE model learnt from the texts, and two added tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text for text in TEXTS[:80] if text and "\0" not in text),
        model_writer=model,
        model_type="bpe",
        vocab_size=1100,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = range(pieces.get_piece_size())
    kinds = [(pieces.is_unknown, 2), (pieces.is_control, 3), (pieces.is_byte, 6)]
    types = [next((kind for is_, kind in kinds if is_(i)), 1) for i in size]
    tokens = [pieces.id_to_piece(i) for i in size]
    scores = [pieces.get_score(i) for i in size]
    return [*tokens, "<|im_end|>", "[USER]"], [*scores, 0.0, 0.0], [*types, 3, 4]


def write_tiny_model(path: Path, tokens: list[str], types: list[int], **tokenizer: object) -> None:
    """A one-layer llama of random weights around a tokenizer: llama.cpp opens nothing less."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in tokenizer.items():
        getattr(writer, f"add_{name}")(value)
    numbers = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_k", "attn_v")}
    shapes |= {f"blk.0.{name}": (32, 32) for name in ("attn_output", "ffn_gate", "ffn_up")}
    shapes |= {"blk.0.ffn_down": (32, 32), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numbers.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ids_of_tiny_model(tokens: list[str], types: list[int], **tokenizer: object) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.gguf")
        write_tiny_model(path, tokens, types, **tokenizer)
        model = LlamaCpp(path)
        return [model.ids(text) for text in TEXTS]


def save(name: str, oracle: str, **content: list[object]) -> None:
    """Write JSON with one line an item."""
    parts = [f'"oracle": {json.dumps(oracle)}']
    for key, items in content.items():
        lines = ",\n".join(json.dumps(item, separators=(",", ":")) for item in items)
        parts.append(f'"{key}": [\n{lines}\n]')
    (GOLDENS / name).write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def main() -> None:
    llama_cpp = f"llama.cpp in xllamacpp {xllamacpp.__version__}"
    smollm2 = LlamaCpp(Path(sys.argv[1]))
    ids = [smollm2.ids(text) for text in TEXTS]
    del smollm2
    save("gguf_smollm2_ids.json", llama_cpp, texts=TEXTS, ids=ids)

    tokens, merges = joining_vocabulary()
    types = [1] * (len(tokens) - 2) + [3, 3]
    common = {"token_merges": merges, "bos_token_id": len(tokens) - 2}
    common |= {"eos_token_id": len(tokens) - 1, "tokenizer_model": "gpt2"}
    groups = []
    for names in GROUPS:
        found = [ids_of_tiny_model(tokens, types, tokenizer_pre=pre, **common) for pre in names]
        assert all(ids == found[0] for ids in found), names
        groups.append({"names": names, "ids": found[0]})
    content = {"tokens": tokens, "types": types, "merges": merges, "texts": TEXTS}
    save("gguf_pretokenizers.json", llama_cpp, **content, groups=groups)

    tokens, scores, types = small_sentencepiece()
    common = {"token_scores": scores, "tokenizer_model": "llama"}
    with_prefix = ids_of_tiny_model(tokens, types, **common)
    without = ids_of_tiny_model(tokens, types, **common, add_space_prefix=False)
    content = {"tokens": tokens, "scores": scores, "types": types, "texts": TEXTS}
    save(
        "gguf_sentencepiece_ids.json",
        llama_cpp,
        **content,
        with_prefix=with_prefix,
        without=without,
    )

    pattern = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))["config"]["pattern"]
    words = [regex.findall(pattern, text) for text in TEXTS]
    oracle = (
        f"tekken_240911.json of mistral-common 1.8.0, regex {importlib.metadata.version('regex')}"
    )
    save("gguf_tekken_words.json", oracle, texts=TEXTS, words=words)


if __name__ == "__main__":
    main()
