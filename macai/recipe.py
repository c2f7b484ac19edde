"""A training run as data: frozen dataclasses, a strict TOML loader, `--set table.key=value`.

A default is written here and nowhere else. A recipe never executes code, and only `macai.finetune`
reads one: what lies below it takes plain arguments.
"""

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w

from macai.errors import RecipeError

ALL_LINEAR = "all-linear"
"""In `adapter.targets`: every linear layer of every block, which is the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """The finite numbers from `low` to `high`, either end included or not."""

    low: float
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return above and below and abs(value) < math.inf  # false for NaN

    def __str__(self) -> str:
        low = f"{'at least' if self.low_included else 'greater than'} {self.low}"
        if self.high == math.inf:
            return f"finite and {low}"
        return f"{low} and {'at most' if self.high_included else 'less than'} {self.high}"


def _number(default: float, low: float, high: float = math.inf, **included: bool) -> Any:
    return field(default=default, metadata={"range": _Range(low=low, high=high, **included)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What is trained, and how large it is.

    Attributes:
        method: The family of adapter.
        rank: Columns of the low-rank factors.
        alpha: Scale of the update before division: the update is multiplied by alpha / rank.
        dropout: Probability in [0, 1) that an input of the adapter is zeroed while training.
        targets: Suffixes of module names such as "self_attn.q_proj", or the one word "all-linear".
        layers: How many blocks get an adapter, counted from the last; 0 is all. Gradients are
            computed down to the first of them only, so fewer make a step cheaper.
    """

    method: Literal["lora"] = "lora"
    rank: int = _number(16, 1)
    alpha: float = _number(32.0, 0, low_included=False)
    dropout: float = _number(0.0, 0, 1, high_included=False)
    targets: tuple[str, ...] = (ALL_LINEAR,)
    layers: int = _number(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """How a gradient becomes a step.

    Attributes:
        name: The update rule.
        learning_rate: Peak step size, which the schedule scales.
        beta1: Decay of AdamW's mean of gradients.
        beta2: Decay of its mean of squared gradients: 0.999 averages over about a thousand steps,
            so a run of fewer keeps the large gradients of its first steps in mind throughout.
        weight_decay: Share of a weight that is taken off a step, times the learning rate.
        max_grad_norm: L2 norm over all gradients above which they are scaled down; 0 never does.
    """

    name: Literal["adamw"] = "adamw"
    learning_rate: float = _number(2e-4, 0, low_included=False)
    beta1: float = _number(0.9, 0, 1, high_included=False)
    beta2: float = _number(0.999, 0, 1, high_included=False)
    weight_decay: float = _number(0.0, 0)
    max_grad_norm: float = _number(1.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate over the run.

    Attributes:
        name: Its shape after the warm-up; cosine and linear end at 0.
        warmup_steps: Steps in which it rises to its peak.
    """

    name: Literal["cosine", "constant", "linear"] = "cosine"
    warmup_steps: int = _number(10, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How many rows make a step.

    Attributes:
        tokens: Tokens of a step, padding included: rows times width stays within it. A row counts
            up to its last learnt token, and with what it shares with other rows.
        micro_tokens: Tokens computed at once, which decides the memory needed and nothing else: the
            gradients of a step's parts are added. 0: the whole step.
    """

    tokens: int = _number(2048, 1)
    micro_tokens: int = _number(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is learnt from.

    Attributes:
        path: A folder or .jsonl file of rows. Relative to the recipe's file when written in one,
            to the current folder in `--set`; absolute once loaded. None: it must come from --data.
        max_length: Tokens a row may have.
        truncation: What becomes of a longer row: it stops the run, is left out, loses its end, or
            is cut so that it keeps its end.
    """

    path: Path | None = None
    max_length: int = _number(1024, 2)
    truncation: Literal["error", "drop", "split", "keep-end"] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """How long the run is and when it looks up.

    Attributes:
        epochs: Passes over the data; 0.5 stops half way through the first.
        seed: Decides the data order, the adapter's start and the dropout.
        eval_every: Steps between two evaluations on the validation rows; 0 is once an epoch.
        save_every: Steps between two checkpoints to resume from; 0 is only the last one.
        workers: Processes that each compute a part of every step; they change its time, and its
            result by rounding only (dropout aside, which draws for each part). 0: as many as the
            machine has use for: 2 where MLX computes on the CPU, else 1. On a GPU always 1.
    """

    epochs: float = _number(3.0, 0, low_included=False)
    seed: int = _number(0, 0, 2**32 - 1)
    eval_every: int = _number(0, 0)
    save_every: int = _number(50, 0)
    workers: int = _number(0, 0, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run, checked.

    Attributes:
        model: What `macai.catalog.locate_model` takes: a catalogue name, a folder, a file or a
            hub id. A value that starts with ./ or ../ is relative as `data.path` is.
        kind: The kind of model.
    """

    model: str
    kind: Literal["language"] = "language"
    adapter: Adapter = Adapter()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    batch: Batch = Batch()
    data: Data = Data()
    train: Train = Train()


def differences(before: Recipe, now: Recipe) -> list[str]:
    """Return a line for each key of a table in which two recipes differ; data.path aside."""
    old, new = asdict(before), asdict(now)
    return [
        f"{table}.{key} = {old[table][key]} there, {value} here"
        for table in new
        if isinstance(new[table], dict)
        for key, value in new[table].items()
        if old[table][key] != value and (table, key) != ("data", "path")
    ]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides, each `key=value` or `table.key=value`.

    The right side of an override is TOML; what is not TOML is taken as the string it looks like.

    Raises:
        RecipeError: Names every unknown or missing key and every wrong value, of the file and of
            the overrides, at once.
    """
    reader = _Reader(path.name)
    table = _read_toml(path)
    _anchor_paths(table, path.parent)
    reader.override(table, overrides)
    recipe = reader.build(Recipe, table, ())
    reader.raise_problems()
    return recipe


def dumps(recipe: Recipe) -> str:
    """Return the recipe as TOML, every default written out; it loads to an equal one."""
    return tomli_w.dumps(_plain(asdict(recipe)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None}
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
    data = table.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str) and data["path"]:
        data["path"] = _absolute(folder, data["path"])
    model = table.get("model")
    if isinstance(model, str) and model.startswith(("./", "../", "~")):
        table["model"] = _absolute(folder, model)


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
            elif spec.default is MISSING:
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
            return self._choice(get_args(hint), value, at)
        if hint in (int, float):
            return self._number(spec, hint, value, at)
        if get_origin(hint) is tuple:
            return self._names(value, at)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            self.report(at, f"must be a string of at least one character, not {_show(value)}")
            return None
        return Path(value) if NoneType in get_args(hint) else value

    def _choice(self, choices: tuple[str, ...], value: Any, at: tuple[str, ...]) -> Any:
        if value not in choices:
            one_of = " or ".join(f'"{c}"' for c in choices)
            self.report(at, f"must be {one_of}, not {_show(value)}")
        return value

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

    def _names(self, value: Any, at: tuple[str, ...]) -> Any:
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            example = 'write ["q_proj", "v_proj"] or ["all-linear"]'
            self.report(at, f"must be a list of names, not {_show(value)}", example)
        elif not value:
            self.report(at, "must name at least one module")
        elif ALL_LINEAR in value and len(value) > 1:
            self.report(at, f'"{ALL_LINEAR}" stands alone: it covers the other names')
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
