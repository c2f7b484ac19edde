"""Rules about what a bundle carries for its model: tokenizer, chat template, ends, licence."""

from collections.abc import Iterator
from typing import Any

from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import MANIFEST, Bundle, Subject

KNOWN_CLASSES = frozenset(
    {
        "BertTokenizer", "CodeGenTokenizer", "CodeLlamaTokenizer", "CohereTokenizer",
        "DistilBertTokenizer", "DistilbertTokenizer", "FalconTokenizer", "GPT2Tokenizer",
        "GemmaTokenizer", "LlamaTokenizer", "PreTrainedTokenizer", "Qwen2Tokenizer",
        "RobertaTokenizer", "T5Tokenizer", "TokenizersBackend", "WhisperTokenizer",
        "XLMRobertaTokenizer", "Xlm-RobertaTokenizer",
    }
)  # fmt: skip
"""swift-transformers, Sources/Tokenizers/Tokenizer.swift, knownTokenizers; names without "Fast"."""
_UNIGRAM_CLASSES = frozenset({"T5Tokenizer", "XLMRobertaTokenizer", "Xlm-RobertaTokenizer"})
_WORDPIECE_CLASSES = frozenset({"BertTokenizer", "DistilBertTokenizer", "DistilbertTokenizer"})
TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endofturn|>", "<|end_of_turn|>",
    "<|return|>", "<turn|>", "<|eom_id|>", "[/INST]",
)  # fmt: skip
"""What ends a turn in the chat templates of the models people export."""


@rule(
    "tokenizer-missing",
    "error",
    "There is no tokenizer.json",
    why="Swift has no other way to make ids of text: swift-transformers refuses the folder.",
    fix="Convert tokenizer.model with transformers: AutoTokenizer.save_pretrained.",
)
def tokenizer_missing(subject: Subject) -> Iterator[Finding]:
    bundle = subject.bundle
    if bundle and not bundle.tokenizer:
        broken = (bundle.folder / "tokenizer.json").exists()
        yield Finding("tokenizer.json is no JSON object" if broken else "tokenizer.json")


@rule(
    "tokenizer-class",
    "warning",
    "A tokenizer class that swift-transformers does not know, or takes for another kind",
    why="It refuses an unknown class, or takes it for BPE when not strict: a Unigram tokenizer "
    "then splits every text wrongly, and says nothing (TOKENIZER-CLASS-UNREGISTERED in "
    "coreai-cli).",
    fix="Set tokenizer_class in tokenizer_config.json: PreTrainedTokenizerFast for BPE, "
    "T5Tokenizer for Unigram, BertTokenizer for WordPiece.",
)
def tokenizer_class(subject: Subject) -> Iterator[Finding]:
    bundle = subject.bundle
    if bundle is None or not bundle.tokenizer:
        return
    given = bundle.tokenizer_config.get("tokenizer_class")
    if not isinstance(given, str):
        yield Finding("tokenizer_config.json names no tokenizer_class")
        return
    name = given.replace("Fast", "")
    if name not in KNOWN_CLASSES:
        yield Finding(f"{given} is not known")
        return
    model = bundle.tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    taken = (
        "Unigram"
        if name in _UNIGRAM_CLASSES
        else "WordPiece"
        if name in _WORDPIECE_CLASSES
        else "BPE"
    )
    if isinstance(kind, str) and kind != taken:
        yield Finding(f"{given} is taken for {taken}, tokenizer.json has {kind}")


@rule(
    "chat-template-missing",
    "warning",
    "There is no chat template",
    why="A model that was tuned to chat gets bare text, and answers like a base model.",
    fix="Ship chat_template.jinja, or chat_template in tokenizer_config.json.",
)
def chat_template_missing(subject: Subject) -> Iterator[Finding]:
    if subject.bundle and not subject.bundle.chat_template:
        yield Finding("neither chat_template.jinja nor an entry in tokenizer_config.json")


@rule(
    "eos-missing",
    "error",
    f"An end of a reply that {MANIFEST} does not have",
    why="The reply never ends: config, generation config, tokenizer and chat template often "
    "disagree on which token ends it.",
    fix="List every one of them in eos_token_ids.",
)
def eos_missing(subject: Subject) -> Iterator[Finding]:
    bundle = subject.bundle
    ends = bundle.manifest.get("eos_token_ids") if bundle else None
    if bundle is None or not isinstance(ends, list):
        return
    for source, wanted in _ends(bundle).items():
        missing = [i for i in wanted if i not in ends]
        if missing:
            yield Finding(f"{', '.join(map(str, missing))} of {source}; there are {ends}")


def _ends(bundle: Bundle) -> dict[str, list[int]]:
    """Return the ids that end a reply, by where it is said."""
    found = {
        name: _ids(bundle.json(name).get("eos_token_id"))
        for name in ("config.json", "generation_config.json")
    }
    eos = bundle.tokenizer_config.get("eos_token")
    text = eos.get("content") if isinstance(eos, dict) else eos
    found["tokenizer_config.json"] = [
        bundle.token_ids[text] for _ in (0,) if isinstance(text, str) and text in bundle.token_ids
    ]
    found["the chat template"] = [
        bundle.token_ids[mark]
        for mark in TURN_ENDS
        if mark in bundle.token_ids and mark in bundle.chat_template
    ]
    return found


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


@rule(
    "license-missing",
    "warning",
    "There is no licence of the model",
    why="Most licences ask that they go along with the weights, into an app too.",
    fix="Copy the model's LICENSE into the bundle.",
)
def license_missing(subject: Subject) -> Iterator[Finding]:
    bundle = subject.bundle
    if bundle and not any(
        f.is_file() for p in ("LICENSE*", "LICENCE*", "license*") for f in bundle.folder.glob(p)
    ):
        yield Finding("no LICENSE file")
