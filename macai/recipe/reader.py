"""The strict reader: every problem of a file and its overrides is reported at once."""

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from macai.errors import RecipeError

AnyRecipe = TypeVar("AnyRecipe")

# The keys that are paths; None stands for the top level, where only ./ and ../ begin one.
PATHS = (
    (None, "model"),
    ("data", "path"),
    ("adapter", "original"),
    ("data", "valid_path"),
    ("data", "class_path"),
    ("diffusion", "vae"),
)


def read(kinds: Mapping[str, type[AnyRecipe]], path: Path, overrides: Sequence[str]) -> AnyRecipe:
    """Read a recipe file, apply overrides and build the class that its `kind` names.

    Args:
        kinds: By the value of `kind`, the default first.
        path: The file.
        overrides: See `macai.recipe.load_recipe`.

    Raises:
        RecipeError: Names every unknown or missing key and every wrong value, of the file and of
            the overrides, at once.
    """
    reader = _Reader(path.name)
    table = _read_toml(path)
    _anchor_paths(table, path.parent)
    reader.override(table, overrides)
    default, *_ = kinds
    kind = table.get("kind", default)
    if not isinstance(kind, str) or kind not in kinds:
        reader.choice(tuple(kinds), kind, ("kind",))
        if len(kinds) > 1:  # which keys there may be depends on it
            reader.raise_problems()
        table["kind"] = kind = default
    recipe = reader.build(kinds[kind], table, ())
    reader.raise_problems()
    return recipe


def differences(before: Any, now: Any) -> list[str]:
    """Return a line for each key of a table in which two recipes differ; data.path aside."""
    if before.kind != now.kind:  # other keys as well
        return [f"kind = {before.kind} there, {now.kind} here"]
    old, new = asdict(before), asdict(now)
    return [
        f"{table}.{key} = {old[table][key]} there, {value} here"
        for table in new
        if isinstance(new[table], dict)
        for key, value in new[table].items()
        if old[table][key] != value and (table, key) != ("data", "path")
    ]


def dumps(recipe: Any) -> str:
    """Return the recipe as TOML, every default written out; it loads to an equal one."""
    return tomli_w.dumps(_plain(asdict(recipe)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise RecipeError(f"{path}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path}: is not UTF-8 text") from e
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # ValueError also for a number of 5000 digits
        raise RecipeError(f"{path.name}: is not TOML: {e}") from e


def _anchor_paths(table: dict[str, Any], folder: Path) -> None:
    """Make the paths in `table` absolute: those of a recipe file belong to its own folder."""
    for name, key in PATHS:
        inner: Any = table if name is None else table.get(name)
        value = inner.get(key) if isinstance(inner, dict) else None
        if not isinstance(value, str) or not value or _names_a_set(name, value):
            continue
        if name is not None or value.startswith(("./", "../", "~")):
            inner[key] = _absolute(folder, value)
    data = table.get("data")
    mix = data.get("mix") if isinstance(data, dict) else None
    for mixed in mix if isinstance(mix, list) else ():
        value = mixed.get("path") if isinstance(mixed, dict) else None
        if isinstance(value, str) and not _names_a_set("data", value):
            mixed["path"] = _absolute(folder, value)


def _names_a_set(table: str | None, value: str) -> bool:
    """Whether a path is none: `macai.data.hub`."""
    return table == "data" and value.startswith("hub:")


def _absolute(folder: Path, path: str) -> str:
    try:
        return str((folder / Path(path).expanduser()).resolve())
    except (ValueError, RuntimeError):  # a NUL in it, or the ~ of nobody: reported as a value
        return path


class _Reader:
    """Builds the dataclasses and collects every problem on the way."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.overridden: set[tuple[str, ...]] = set()
        self.problems: list[tuple[str, str | None]] = []

    def report(
        self,
        at: tuple[str, ...],
        text: str,
        hint: str | None = None,
        *,
        key: tuple[str, ...] | None = None,
    ) -> None:
        """Note a problem at a table or key; `key` is the one to blame when `at` is its table."""
        origin = "--set" if (key or at) in self.overridden else f"{self.file}:"
        place = f"{'.'.join(at)}: " if at else ""
        self.problems.append((f"{origin} {place}{text}", hint))

    def raise_problems(self) -> None:
        if len(self.problems) == 1:
            text, hint = self.problems[0]
            raise RecipeError(text, hint=hint)
        if self.problems:
            lines = [f"{text} ({hint})" if hint else text for text, hint in self.problems]
            raise RecipeError("\n".join([f"{self.file}: {len(lines)} problems", *lines]))

    def override(self, table: dict[str, Any], overrides: Sequence[str]) -> None:
        """Write each `key=value` or `table.key=value` into `table`."""
        for text in overrides:
            name, equals, right = text.partition("=")
            key = tuple(part.strip() for part in name.split("."))
            if not equals or not all(key) or len(key) > 2:
                hint = "for example --set adapter.rank=8"
                self.problems.append((f"--set {text}: is not table.key=value", hint))
                continue
            given: dict[str, Any] = {key[-1]: _parse_value(right.strip())}
            given = {key[0]: given} if len(key) == 2 else given
            _anchor_paths(given, Path.cwd())
            if len(key) == 1 or key[0] not in table:
                table |= given
                self.overridden.add(key[:1])
            elif isinstance(table[key[0]], dict):
                table[key[0]] |= given[key[0]]
            self.overridden.add(key)

    def build(self, cls: type[Any], table: Any, at: tuple[str, ...]) -> Any:
        """Return an instance of `cls`, or None when a problem was reported."""
        if not isinstance(table, dict):
            self.report(at, f"must be a table, not {_show(table)}")
            return None
        hints = get_type_hints(cls)
        known = {f.name: f for f in fields(cls)}
        before = len(self.problems)
        for name in table:
            if name not in known:
                self._report_unknown(at, name, table[name], list(known))
        values: dict[str, Any] = {}
        for name, spec in known.items():
            if name in table:
                values[name] = self._value(spec, hints[name], table[name], (*at, name))
            elif spec.default is MISSING and spec.default_factory is MISSING:
                self.report((*at, name), "is missing", f"write {name} = ..., or --set {name}=...")
        return cls(**values) if len(self.problems) == before else None

    def _report_unknown(self, at: tuple[str, ...], name: str, value: Any, known: list[str]) -> None:
        what = "table" if isinstance(value, dict) else "key"
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        self.report(at, f"unknown {what} '{name}'", hint, key=(*at, name))

    def _value(self, spec: Field[Any], hint: Any, value: Any, at: tuple[str, ...]) -> Any:
        if is_dataclass(hint):
            return self.build(hint, value, at)  # type: ignore[arg-type]
        if get_origin(hint) is Literal:
            return self.choice(get_args(hint), value, at)
        if hint in (int, float):
            return self._number(spec, hint, value, at)
        if hint is bool:
            return self._boolean(value, at)
        if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]):
            return self._tables(get_args(hint)[0], value, at)
        if get_origin(hint) is tuple:
            return self._strings(spec, get_args(hint)[0], value, at)
        if get_origin(hint) is dict:
            return self._numbers(spec, get_args(hint)[1], value, at)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            self.report(at, f"must be a string of at least one character, not {_show(value)}")
            return None
        return Path(value) if Path in (hint, *get_args(hint)) else value

    def _tables(self, cls: Any, value: Any, at: tuple[str, ...]) -> Any:
        if not isinstance(value, list):
            self.report(at, f"must be a list of tables, not {_show(value)}")
            return None
        return tuple(self.build(cls, table, at) for table in value)

    def choice(self, choices: tuple[Any, ...], value: Any, at: tuple[str, ...]) -> Any:
        """Return `value`, which must be one of `choices`."""
        if not any(type(value) is type(c) and value == c for c in choices):
            one_of = " or ".join(map(_show, choices))
            close = difflib.get_close_matches(str(value), list(map(str, choices)), n=1)
            hint = f"did you mean '{close[0]}'?" if close else None
            self.report(at, f"must be {one_of}, not {_show(value)}", hint)
        return value

    def _numbers(
        self, spec: Field[Any], kind: type[int] | type[float], value: Any, at: tuple[str, ...]
    ) -> Any:
        if not isinstance(value, dict):
            self.report(at, f"must be a table of numbers, not {_show(value)}", "{q_proj = 4}")
            return None
        return {name: self._number(spec, kind, v, (*at, name)) for name, v in value.items()}

    def _number(
        self, spec: Field[Any], kind: type[int] | type[float], value: Any, at: tuple[str, ...]
    ) -> Any:
        # bool is an int to Python, and `rank = true` is a mistake.
        accepted = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, accepted):
            what = "a whole number" if kind is int else "a number"
            self.report(at, f"must be {what}, not {_show(value)}")
            return None
        allowed = spec.metadata["range"]
        try:
            number = kind(value)
        except OverflowError:
            number = math.inf
        if number not in allowed:
            self.report(at, f"must be {allowed}, not {_show(value)}")
        return number

    def _boolean(self, value: Any, at: tuple[str, ...]) -> Any:
        if not isinstance(value, bool):
            self.report(at, f"must be true or false, not {_show(value)}")
        return value

    def _strings(self, spec: Field[Any], each: Any, value: Any, at: tuple[str, ...]) -> Any:
        of = spec.metadata["strings"]
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self.report(at, f"must be a list of {of.what}s, not {_show(value)}", of.example)
        elif not value and not of.may_be_empty:
            self.report(at, f"must name at least one {of.one}")
        elif of.alone in value and len(value) > 1:
            self.report(at, f'"{of.alone}" stands alone: it covers the other names')
        elif get_origin(each) is Literal:
            return tuple(self.choice(get_args(each), v, at) for v in value)
        else:
            return tuple(value)
        return None


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _show(value: Any) -> str:
    """Return a value as it is written in TOML, shortened."""
    if isinstance(value, dict):
        return "a table"
    text = " ".join(tomli_w.dumps({"v": value}).removeprefix("v = ").split())
    return text if len(text) <= 60 else text[:57] + "..."
