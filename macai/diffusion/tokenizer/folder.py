"""A tokenizer folder as diffusers writes it: vocabulary, special tokens, longest prompt.

The files are read in the order and with the meaning of transformers 5 (`CLIPTokenizer`): a
tokenizer.json before vocab.json and merges.txt, of which only vocabulary and added tokens count;
special_tokens_map.json and added_tokens.json where tokenizer_config.json has no
`added_tokens_decoder`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from macai.diffusion.tokenizer.vocabulary import END, START, Vocabulary, parse_merges
from macai.errors import FormatError, ModelError

MAX_LENGTH = 77
"""Positions of every CLIP text encoder there is."""

_ROLES = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MAX_BYTES = 64 * 2**20
_MAX_TOKENS = 2**20


@dataclass(frozen=True, slots=True)
class Settings:
    """What a tokenizer is besides its vocabulary.

    Attributes:
        start, end, unknown, padding: The tokens with a role; several may be one.
        added: Every token that the files name apart from the vocabulary, by id; a special one is
            found in a text before anything else.
        max_length: Tokens of a prompt with its start and end.
    """

    start: AddedToken
    end: AddedToken
    unknown: AddedToken
    padding: AddedToken
    added: tuple[tuple[int, AddedToken], ...] = ()
    max_length: int = MAX_LENGTH


@dataclass(slots=True)
class _Found:
    """Special tokens on their way from the files: those with a role, and all by their text."""

    roles: dict[str, str | AddedToken]
    added: dict[str, tuple[int, AddedToken]] = field(default_factory=dict)


def default_settings(*, padding: str, max_length: int = MAX_LENGTH) -> Settings:
    """Return CLIP's own special tokens with a padding token of choice.

    Start and end are compared in lower case, as the files of SD 1.x, 2.x and XL have it.
    """
    start, end = (AddedToken(text, special=True, normalized=True) for text in (START, END))
    return Settings(start, end, end, AddedToken(padding, special=True), max_length=max_length)


def read_folder(path: Path) -> tuple[Vocabulary, Settings]:
    """Read `path`, a folder.

    Raises:
        ModelError: a file is missing, or the vocabulary is not CLIP's kind.
        FormatError: a file is not what its name says.
    """
    if not path.is_dir():
        raise ModelError(
            f"{path}: no such folder",
            hint="a diffusers model keeps it as tokenizer/ or tokenizer_2/",
        )
    config = _read_object(path / "tokenizer_config.json", optional=True)
    whole = path / "tokenizer.json"
    tokenizer = _read_object(whole, optional=True)
    if tokenizer:
        vocabulary = _vocabulary_of_tokenizer_json(whole, tokenizer)
    else:
        vocabulary = _vocabulary_of_two_files(path)
    found = _special_tokens(path, config, tokenizer)
    start, end, unknown, padding = (_role(token) for token in found.roles.values())
    added = tuple(sorted(found.added.values(), key=lambda entry: entry[0]))
    settings = Settings(start, end, unknown, padding, added, _max_length(path, config))
    for token in (settings.start, settings.end, settings.unknown):
        if token.content not in vocabulary.ids:
            raise ModelError(f"{path}: the vocabulary has no {token.content!r}: it is not CLIP's")
    return vocabulary, settings


def _vocabulary_of_two_files(path: Path) -> Vocabulary:
    file = path / "vocab.json"
    ids = _token_ids(file, _read_object(file))
    file = path / "merges.txt"
    try:
        merges = parse_merges(_read_text(file).split("\n"))
    except ValueError as e:
        raise FormatError(f"{file}: {e}") from e
    return _checked(file, ids, merges)


def _vocabulary_of_tokenizer_json(file: Path, tokenizer: Mapping[str, Any]) -> Vocabulary:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ModelError(f"{file}: not a byte-pair tokenizer, and CLIP's is one")
    ids = _token_ids(file, model.get("vocab"))
    given = model.get("merges")
    if not isinstance(given, list):
        raise FormatError(f"{file}: model.merges is not a list")
    merges = []
    for merge in given:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise FormatError(f"{file}: {str(merge)[:80]!r} in model.merges is not two tokens")
        merges.append((pair[0], pair[1]))
    return _checked(file, ids, merges)


def _token_ids(file: Path, value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not value:
        raise FormatError(f"{file}: no tokens by name")
    if len(value) > _MAX_TOKENS:
        raise FormatError(f"{file}: {len(value):,} tokens; CLIP has 49,408")
    for token, number in value.items():
        if type(number) is not int or not 0 <= number < _MAX_TOKENS:
            raise FormatError(f"{file}: the id of {token[:40]!r} is {str(number)[:40]}")
    return value


def _checked(file: Path, ids: dict[str, int], merges: list[tuple[str, str]]) -> Vocabulary:
    for left, right in merges:
        missing = next((t for t in (left, right, left + right) if t not in ids), None)
        if missing is not None:
            raise FormatError(
                f"{file}: the merge '{left} {right}' needs {missing!r}, which is no token"
            )
    return Vocabulary(ids, merges)


def _special_tokens(path: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> _Found:
    found = _Found(dict(_ROLES))
    file = path / "tokenizer_config.json"
    _take_roles(file, found, config, special=False)
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict):
            raise FormatError(f"{file}: added_tokens_decoder is not an object")
        for number, value in decoder.items():
            _add(file, found, number, value)
    else:
        file = path / "special_tokens_map.json"
        _take_roles(file, found, _read_object(file, optional=True), special=True)
        _add_of_older_files(path, found, tokenizer)
    for role, token in found.roles.items():
        _, found.roles[role] = found.added.get(str(token), (0, token))
    return found


def _add_of_older_files(path: Path, found: _Found, tokenizer: Mapping[str, Any]) -> None:
    file = path / "added_tokens.json"
    named = {str(token) for token in found.roles.values()}
    for text, number in _read_object(file, optional=True).items():
        flags = {"special": text in named, "normalized": text not in named}
        _add(file, found, number, {"content": text, **flags})
    file = path / "tokenizer.json"
    values = tokenizer.get("added_tokens", [])
    if not isinstance(values, list):
        raise FormatError(f"{file}: added_tokens is not a list")
    for value in values:
        _add(file, found, value.get("id") if isinstance(value, dict) else None, value)


def _take_roles(file: Path, found: _Found, values: Mapping[str, Any], *, special: bool) -> None:
    for role in _ROLES:
        value = values.get(role)
        if isinstance(value, str):
            found.roles[role] = value
        elif value is not None:
            found.roles[role] = _added_token(file, value, special=special)


def _add(file: Path, found: _Found, number: Any, value: Any) -> None:
    token = _added_token(file, value, special=False)
    digits = str(number)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise FormatError(f"{file}: the id of {token.content[:40]!r} is {digits[:40]}")
    found.added[token.content] = (int(digits), token)


def _added_token(file: Path, value: Any, *, special: bool) -> AddedToken:
    """Make a token of its JSON; `special` where the file says so of all its tokens."""
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str) or not content:
        raise FormatError(f"{file}: {str(value)[:80]!r} is not a token")
    flags = {name: value[name] for name in _FLAGS if isinstance(value.get(name), bool)}
    if special:
        flags["special"] = True
    return AddedToken(content, **flags)


def _role(token: str | AddedToken) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    token.special = True
    return token


def _max_length(path: Path, config: Mapping[str, Any]) -> int:
    """Return model_max_length; transformers writes 1e30 where there is none."""
    value = config.get("model_max_length", MAX_LENGTH)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 3:
        raise FormatError(f"{path / 'tokenizer_config.json'}: model_max_length is {value!r}")
    return int(value) if value <= 2**16 else MAX_LENGTH


def _read_object(file: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not file.exists():
        return {}
    text = _read_text(file)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as e:
        raise FormatError(f"{file}: not JSON") from e
    if not isinstance(value, dict):
        raise FormatError(f"{file}: not a JSON object")
    return value


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise FormatError(f"{file}: larger than {_MAX_BYTES // 2**20} MiB")
        return file.read_text(encoding="utf-8")
    except OSError as e:
        raise ModelError(
            f"{file}: {e.strerror}",
            hint="a CLIP tokenizer has vocab.json and merges.txt, or tokenizer.json",
        ) from e
    except UnicodeDecodeError as e:
        raise FormatError(f"{file}: not UTF-8") from e
