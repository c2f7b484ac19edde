"""Tokenizer folders as the models that people use have them."""

import json
from pathlib import Path

from macai.diffusion.tokenizer import ClipTokenizer
from macai.diffusion.tokenizer.vocabulary import END, START

KINDS = ["sd1", "sd2", "xl-second", "decoder", "tokenizer-json", "bare", "added", "decoder-added"]


def named(content: str, **flags: object) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False} | flags
    return {"content": content, **flags}


def of_type(content: str) -> dict[str, object]:
    return {"__type": "AddedToken", **named(content)}


def config(padding: str) -> dict[str, object]:
    return {
        "add_prefix_space": False,
        "bos_token": of_type(START),
        "do_lower_case": True,
        "eos_token": of_type(END),
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": padding,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": of_type(END),
    }


def special_map(padding: str) -> dict[str, object]:
    return {
        "bos_token": named(START),
        "eos_token": named(END),
        "pad_token": padding,
        "unk_token": named(END),
    }


def write(folder: Path, **files: object) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def write_kind(kind: str, folder: Path, tokenizer: ClipTokenizer | None = None) -> Path:
    """Write one of KINDS, of the shipped vocabulary or that of `tokenizer`.

    sd1 and sd2 as in those repositories (sd2 says "!" in the special map alone), xl-second as
    tokenizer_2 of XL; decoder as transformers 4.40 writes them; tokenizer-json as newer
    repositories have them; the others with tokens of their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or ClipTokenizer.shipped()
    if kind != "tokenizer-json":
        tokenizer.write(folder)
    if kind == "sd1":
        return write(folder, tokenizer_config=config(END), special_tokens_map=special_map(END))
    if kind == "sd2":
        return write(folder, tokenizer_config=config(END), special_tokens_map=special_map("!"))
    if kind == "xl-second":
        return write(folder, tokenizer_config=config("!"), special_tokens_map=special_map("!"))
    if kind == "decoder":
        tokens = {"0": named("!", normalized=False, special=True)}
        tokens |= {"49406": named(START, special=True), "49407": named(END, special=True)}
        plain = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
        plain |= {"added_tokens_decoder": tokens, "model_max_length": 77}
        return write(folder, tokenizer_config=plain)
    if kind == "tokenizer-json":
        model = {"type": "BPE", "vocab": tokenizer.vocabulary.ids}
        model |= {"merges": [" ".join(pair) for pair in tokenizer.vocabulary.merges]}
        model |= {"end_of_word_suffix": "</w>", "unk_token": END}
        added = [{"id": 49406, **named(START, special=True)}]
        added += [{"id": 49407, **named(END, special=True, normalized=False)}]
        whole = {"version": "1.0", "model": model, "added_tokens": added, "normalizer": None}
        return write(folder, tokenizer=whole, tokenizer_config=config(END))
    if kind == "added":
        write(folder, added_tokens={"<style>": 49408, "sks": 49409})
        return write(folder, tokenizer_config=config(END), special_tokens_map=special_map(END))
    if kind == "decoder-added":
        tokens = {"49409": named("SKS", rstrip=True), "49408": named("<a>", special=True)}
        return write(folder, tokenizer_config=config(END) | {"added_tokens_decoder": tokens})
    return folder
