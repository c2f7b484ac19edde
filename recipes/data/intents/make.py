"""Write train.jsonl, valid.jsonl and test.jsonl: `python recipes/data/intents/make.py`.

The sentences are in patterns.json and the names, rooms, songs... in values.json, both written by
hand and divided by split there; numbers and times are divided here. README.md tells the rules.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SYSTEM = "Answer in JSON."

SLOTS = {
    "alarm.set": ("time", "day"),
    "timer.start": ("duration", "label"),
    "reminder.create": ("task", "day", "time"),
    "calendar.add": ("title", "day", "time"),
    "light.on": ("room",),
    "light.off": ("room",),
    "light.color": ("room", "color"),
    "thermostat.set": ("degrees", "room"),
    "music.play": ("song", "artist", "playlist"),
    "volume.set": ("level", "device"),
    "message.send": ("to", "text"),
    "call.start": ("to",),
    "weather.get": ("city", "day"),
    "navigate.to": ("place",),
    "note.add": ("text",),
}
"""Every intent and the order of its slots in the JSON."""

ROWS = {
    "valid": dict.fromkeys(SLOTS, 10),
    "test": dict.fromkeys(SLOTS, 13)
    | dict.fromkeys(("alarm.set", "timer.start", "reminder.create", "calendar.add"), 14)
    | {"weather.get": 14},
}
"""How many rows of each intent; train has one for each of its patterns, two if it has a time."""

OPENERS = ("hey, ", "okay, ", "um, ", "so, ", "right, ", "alright, ", "listen, ", "sorry, ")

HOURS = (
    *("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve"),
)
PAST = {5: "five", 10: "ten", 15: "quarter", 20: "twenty"}

Value = tuple[str, str | int]
"""A slot as it is said, and as it stands in the JSON."""


def split_of_number(number: int) -> str:
    """Divide numbers from 0 so that each digit occurs in every split in either place."""
    residue = (3 * (number // 10) + number % 10) % 10
    return "test" if residue in {0, 4, 7} else "valid" if residue in {2, 8} else "train"


def split_of_clock(hour: int, minute: int) -> str:
    """Divide the faces of a 12-hour clock: train has each hour and each minute, but not all pairs.

    06:30 and 18:30 are one face, or "half six" would be said in two splits.
    """
    residue = (hour % 12 + 5 * (minute // 5)) % 12
    return "test" if residue in {0, 4, 8} else "valid" if residue in {1, 6} else "train"


def clock_words(hour: int, minute: int) -> list[str]:
    """Return the ways of saying a time of a 12-hour clock in words, none for most minutes."""
    this, following = HOURS[hour], HOURS[hour % 12 + 1]
    if minute == 0:
        return [f"{this} o'clock", f"{hour} o'clock"]
    if minute == 30:
        return [f"half {this}", f"half past {this}", f"half past {hour}"]
    if minute in PAST:
        return [f"{PAST[minute]} past {this}", f"{PAST[minute]} past {hour}"]
    if 60 - minute in PAST and hour < 12:
        return [f"{PAST[60 - minute]} to {following}", f"{PAST[60 - minute]} to {hour + 1}"]
    return []


def say_time(hour: int, minute: int, rng: random.Random, *, short: bool, drill: bool) -> str:
    """Say a time of day (hour 0 to 23) so that the rules of README.md give it back.

    Args:
        hour: From 4 to 21.
        minute: From 0 to 59.
        rng: What chooses between the ways.
        short: Whether only one-word forms such as "7:30", "07:30" and "7 am" will do.
        drill: Whether the forms with something to work out come far more often than in speech.
    """
    face, after = hour % 12 or 12, hour > 12
    digits = f"{face}{rng.choice(':::.')}{minute:02d}" if minute else str(face)
    words = [] if short else clock_words(face, minute)
    # Adding twelve is the hard part of the task: a minority of the times ask for it.
    if after and rng.random() < (0.35 if drill else 0.6):
        return f"{hour}:{minute:02d}"
    part = "evening" if hour > 17 else "afternoon" if after else "morning"
    if drill and words and rng.random() < 0.6:
        return rng.choice(words) + (f" in the {part}" if after else "")
    suffixes = [" pm", "pm"] if hour >= 12 else [" am", "am"]
    if not short and hour != 12:
        suffixes.append(f" in the {part}")
    said = digits + rng.choice(suffixes)
    if after:
        return said
    forms = [said, f"{hour:02d}:{minute:02d}", *([digits] if minute else [])]
    return rng.choice([*forms, *words])


def say_duration(kind: str, number: int, rng: random.Random, *, adjective: bool) -> Value:
    """Say a number of seconds, minutes or hours, or of minutes after one to three whole hours.

    Args:
        kind: One of `s`, `m`, `h`, or `1h`, `2h`, `3h` before minutes.
        number: How many, at least 2.
        rng: What chooses between the ways.
        adjective: Whether it stands before a noun: "25 minute", not "25 minutes".
    """
    plural = "" if adjective else "s"
    if len(kind) == 1:
        unit = {"s": "second", "m": "minute", "h": "hour"}[kind]
        joint = rng.choice("- ") if adjective else " "
        return f"{number}{joint}{unit}{plural}", f"{number}{kind}"
    hours = f"{kind[0]} hour" + ("" if kind == "1h" else plural)
    link = rng.choice((" ", " and "))
    return f"{hours}{link}{number} minute{plural}", f"{kind}{number}m"


def faces(split: str, hours: range) -> list[tuple[int, int]]:
    """Return the times of a split: the multiples of five, and a few of the minutes between.

    Train has those that are said in words three times over.
    """
    found = [
        (hour, minute)
        for hour in hours
        for minute in range(60)
        if split_of_clock(hour, minute) == split
        and (minute % 5 == 0 or (7 * hour + minute) % 23 == 0)
    ]
    worded = [(h, m) for h, m in found if split == "train" and clock_words(h % 12 or 12, m)]
    return found + 2 * worded


def durations(split: str) -> list[tuple[str, int]]:
    limits = {"s": range(5, 125, 5), "m": range(2, 61), "h": range(2, 13)}
    limits |= {f"{hours}h": range(5, 60, 5) for hours in (1, 2, 3)}
    return [(kind, n) for kind, span in limits.items() for n in span if split_of_number(n) == split]


def cycle(values: list[Any], rng: random.Random) -> Iterator[Any]:
    """Repeat `values` for ever in a new order each time, so that all are used about equally."""
    while True:
        yield from rng.sample(values, len(values))


class Speaker:
    """What says the values of one split, each type in its own shuffled cycle."""

    def __init__(self, split: str, rng: random.Random) -> None:
        written = json.loads((HERE / "values.json").read_text(encoding="utf-8"))
        self.rng, self.split = rng, split
        self.words = {kind: cycle(lists[split], rng) for kind, lists in written.items()}
        numbers = [n for n in range(5, 101) if split_of_number(n) == split]
        degrees = [n for n in (*range(15, 29), *range(60, 80)) if n in numbers]
        # Alarms ring in the morning; a bare hour in a diary is one that nobody takes for the night.
        self.clocks = {
            "alarm.set": cycle(faces(split, range(4, 12)), rng),
            "reminder.create": cycle(faces(split, range(8, 22)), rng),
            "calendar.add": cycle(faces(split, range(8, 22)), rng),
        }
        self.level, self.degrees = cycle(numbers, rng), cycle(degrees, rng)
        lengths = durations(split)
        self.length = cycle(lengths, rng)
        # Nothing that has a name takes twenty seconds, or nine hours sharp.
        self.cooking = cycle([length for length in lengths if length[0] in {"m", "1h", "2h"}], rng)

    def say(self, intent: str, field: str) -> Value:
        """Say one value for a placeholder of patterns.json, such as `day_on` or `time_short`."""
        makers: dict[str, Callable[[], Value]] = {
            "time": lambda: self._time(intent, short=False),
            "time_short": lambda: self._time(intent, short=True),
            "duration": lambda: self._duration(field, self.length),
            "duration_adj": lambda: self._duration(field, self.length),
            "duration_label": lambda: self._duration(field, self.cooking),
            "duration_label_adj": lambda: self._duration(field, self.cooking),
            "degrees": lambda: number_value(next(self.degrees)),
            "level": lambda: number_value(next(self.level)),
        }
        if field in makers:
            return makers[field]()
        kind = {"to": "contact", "text": "message" if intent == "message.send" else "note"}
        said = next(self.words[kind.get(field, field)])
        return said, said

    def _time(self, intent: str, *, short: bool) -> Value:
        hour, minute = next(self.clocks[intent])
        said = say_time(hour, minute, self.rng, short=short, drill=self.split == "train")
        return said, f"{hour:02d}:{minute:02d}"

    def _duration(self, field: str, lengths: Iterator[tuple[str, int]]) -> Value:
        kind, number = next(lengths)
        return say_duration(kind, number, self.rng, adjective=field.endswith("_adj"))


def number_value(number: int) -> Value:
    return str(number), number


def make_row(intent: str, pattern: str, speaker: Speaker) -> dict[str, Any]:
    """Fill one pattern; `pattern` and `values` stay in the row, so that a reader can check it."""
    said: dict[str, str] = {}
    call: dict[str, str | int] = {}
    for field in re.findall(r"{(\w+)}", pattern):
        slot = field.split("_")[0]
        said[slot], call[slot] = speaker.say(intent, field)
    plain = re.sub(r"{([a-z]+)_\w+}", r"{\1}", pattern)
    ordered = {"intent": intent} | {slot: call.get(slot) for slot in SLOTS[intent]}
    answer = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": plain.format(**said)},
            {"role": "assistant", "content": answer},
        ],
        "pattern": plain,
        "values": said,
    }


def opened(pattern: str, rng: random.Random) -> str:
    """Put an opener before a pattern, in place of the one it has if it has one."""
    own = next((opener for opener in OPENERS if pattern.startswith(opener)), "")
    return rng.choice([o for o in OPENERS if o != own]) + pattern.removeprefix(own)


def train_patterns(written: list[str], rng: random.Random) -> list[str]:
    """Return the patterns of train's rows, all different.

    Those with a time of day, the hardest slot, come as they are and once more with an opener; of
    the others, one in six has an opener, or openers would be a sign of a time.
    """
    patterns = []
    for pattern in written:
        if "{time" in pattern:
            patterns += [pattern, opened(pattern, rng)]
        else:
            patterns.append(opened(pattern, rng) if rng.random() < 1 / 6 else pattern)
    return patterns


def make_split(split: str) -> list[dict[str, Any]]:
    """Return the rows of a split, shuffled; the same on every machine."""
    rng = random.Random(f"intents {split}")
    speaker = Speaker(split, rng)
    patterns = json.loads((HERE / "patterns.json").read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {}
    for intent in SLOTS:
        written = patterns[intent][split]
        if split == "train":
            written = train_patterns(written, rng)
        wanted = len(rows) + (len(written) if split == "train" else ROWS[split][intent])
        for pattern in cycle(written, rng):
            row = make_row(intent, pattern, speaker)
            rows.setdefault(row["messages"][1]["content"], row)
            if len(rows) == wanted:
                break
    return rng.sample(list(rows.values()), len(rows))


def main() -> None:
    for split in ("train", *ROWS):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make_split(split)]
        path = HERE / f"{split}.jsonl"
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{path.name}: {len(lines)} rows")


if __name__ == "__main__":
    main()
