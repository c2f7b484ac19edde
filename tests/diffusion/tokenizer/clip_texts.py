"""Prompts that make CLIP tokenizers disagree: 1,024 of them, always the same."""

# ruff: noqa: E501

import random

HARD = [
    *["", " ", "   ", "\n", "\t\r\n", "\u00a0", "\u3000", "a", "A", "!", "!!", "! !", "hello!", "!hello"],
    *["a photo of a dog.", "a photo of sks dog", "masterpiece, best quality, highly detailed, 8k"],
    *["don't can't I'll we've you're it's he'd I'm", "DON'T I'LL WE'VE YOU'RE IT'S HE'D I'M"],
    *["it’s “quoted” ‘text’ — dash – hyphen-ated…", "'LL 's 'Ve 'rE 'D 'm ' 'x ''s", "a'b'c''d'''e"],
    *["1", "12", "1234567890", "3.14 -2,718 +1e-5 0x1F 1/2", "4k 8k hdr10 f/1.8 50mm", "½ ² Ⅷ ① ٣٤٥ १२३"],
    *["café", "cafe\u0301", "naïve résumé Zürich straße ŒUVRE", "Ångström \u212b \u2126", "ÀÉÎ ǅ ǈ ʰ ª º"],
    *["İstanbul ISPARTA ıi", "ΟΔΟΣ ΣΑΣ Σ", "ﬁ ﬂ ﬃ ㎏ ｆｕｌｌ ＡＢＣ", "e\u0301\u0302\u0303 \u0301alone a \u0301b"],
    *["Z̷̡͍͓a̶̢̛l̵͔̀g̸̰̈́o̵͇͝", "Tiếng Việt có dấu", "Привет, мир! Ёлка", "Ελληνικά Ωμέγα", "مرحبا بالعالم،", "مَرْحَبًا"],
    *["שלום עולם", "हिन्दी में क्षत्रिय", "ภาษาไทยไม่มีช่องว่าง", "日本語のテキスト。", "中文字符测试，没有空格！", "한국어 테스트"],
    *["\u1112\u1161\u11ab\u1100\u1173\u11af", "👩‍👩‍👧‍👦 family 👨🏽‍💻 🏳️‍🌈 🇩🇪🇯🇵", "❤️ ☺︎ ✔️ 1️⃣", "😀😃😄 text 🎉!"],
    *["\x00", "a\x00b\x01c\x02d\x1be\x7ff", "\x1c\x1d\x1e\x1f", "\x85 \u2028 \u2029", "\ufeffBOM \u200b\u200c\u200d\u2060"],
    *["\u200babc\u200b", "replacement \ufffd\ufffd", "private \ue000\uf8ff \U000f0000 \U0010fffd", "\ufffe\uffff\U0001ffff"],
    *["pneumonoultramicroscopicsilicovolcanoconiosis", "a" * 300, "ab" * 100, "!" * 67, "=" * 31 + "-" * 17],
    *["word " * 90, "a, " * 60, "supercalifragilistic" * 30, "日" * 120, "x" * 76 + " tail"],
    *["?!?! ... ,,, ;;; :-) ^_^ ¯\\_(ツ)_/¯", "$100 €200 ¥400 50% ±1 ×2 ÷3 √4 ∞ ≠ ≤ ∑", "a+b=c <=> d~e|f^g`h \u037e \u1fef"],
    *["(word:1.2) ((very)) [less] \\(literal\\) {curly} <lora:name:0.8>", "#hashtag @mention ## #: #... #@"],
    *["https://example.com/a/b?c=d&e=%20f#g user@example.org", "C:\\Windows ~/.config snake_case CamelCase"],
    *["<|startoftext|>", "<|endoftext|>", "a <|endoftext|> b", "<|STARTOFTEXT|> <|EndOfText|>", "<|end of text|>"],
    *["x<|endoftext|>y", "</w> a</w> w>", "two  spaces   here", " lead", "trail ", "\tx\ny\r\nz\x0b\x0c", "a\u00a0b\u2003c"],
    *["'s", "'S", "s's's", "''s'", "'t've", "rock'n'roll O'Neill's", "l'été d'or", "’s ’t", "_'s", "1's 2'd"],
]  # fmt: skip

ATOMS = [
    *["a", "the", "ing", "THE", "Th", "x", "é", "e\u0301", "Ж", "日本", "語", "ا", "\u064e", "ß", "İ", "Σ", "각"],
    *[" ", " ", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200d", "\u200b", "\x00", "\x1b", "\u0301"],
    *["'", "'s", "'LL", "’", '"', "1", "23", "456", "٣", "½", ".", ",", "...", "/", "\\", "_", "-", "!", "!!", "#"],
    *["==", "(", ")", "$", "+", "`", "^", "|", "<", ">", "😀", "🏽", "❤️", "👩‍💻", "🇩🇪", "\ufffd", "\ue000", "क्ष"],
    *["<|startoftext|>", "<|endoftext|>", "<|ENDOFTEXT|>", "</w>", "dog", "cat.", "detailed,", "photo-real"],
]  # fmt: skip

# fmt: off
SUBJECTS = ["a photo of an astronaut", "portrait of a woman", "a red apple", "sks dog", "two cats", "an old castle"]
PLACES = ["on the moon", "in a café in Paris", "at sunset", "under water", "in the style of Hokusai", "by the sea"]
STYLES = ["highly detailed", "8k", "f/1.8", "oil-painting", "trending on artstation", "octane render", "4K UHD", "it's raining", "no text!", "best quality", "1girl", "chiaroscuro", "ukiyo-e", "16:9", "(hdr)", "80's"]
# fmt: on


def texts(count: int = 1024) -> list[str]:
    """The hard ones, then half atoms in any order and half what people type."""
    source = random.Random(11)
    found = list(HARD)
    while len(found) < count:
        if len(found) % 2:
            kinds = source.sample(ATOMS, source.randint(2, 8)) if source.random() < 0.5 else ATOMS
            found.append("".join(source.choices(kinds, k=source.randint(1, 18))))
        else:
            styles = ", ".join(source.sample(STYLES, source.randint(0, 9)))
            end = source.choice(["", ".", ", ", "!"])
            found.append(f"{source.choice(SUBJECTS)} {source.choice(PLACES)}, {styles}{end}")
    return found
