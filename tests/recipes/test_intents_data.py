"""The shipped intents data, judged from its files alone: nothing here asks the generator."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "recipes" / "data" / "intents"
COUNTS = {"train": 1974, "valid": 150, "test": 200}
SLOTS = {
    "alarm.set": ["time", "day"],
    "timer.start": ["duration", "label"],
    "reminder.create": ["task", "day", "time"],
    "calendar.add": ["title", "day", "time"],
    "light.on": ["room"],
    "light.off": ["room"],
    "light.color": ["room", "color"],
    "thermostat.set": ["degrees", "room"],
    "music.play": ["song", "artist", "playlist"],
    "volume.set": ["level", "device"],
    "message.send": ["to", "text"],
    "call.start": ["to"],
    "weather.get": ["city", "day"],
    "navigate.to": ["place"],
    "note.add": ["text"],
}
HOURS = """one two three four five six seven eight nine ten eleven twelve"""
NUMBERS = {word: number for number, word in enumerate(HOURS.split(), 1)}
NUMBERS |= {"quarter": 15, "twenty": 20}

Row = dict[str, Any]


def read_split(split: str) -> list[Row]:
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


SPLITS = {split: read_split(split) for split in COUNTS}
ALL_ROWS = [row for rows in SPLITS.values() for row in rows]
# The later of two must bring nothing that the earlier had.
PAIRS = [("train", "valid"), ("train", "test"), ("valid", "test")]


def text_of(row: Row) -> str:
    return row["messages"][1]["content"]


def call_of(row: Row) -> dict[str, Any]:
    return json.loads(row["messages"][2]["content"])


def slots_of(row: Row) -> dict[str, Any]:
    """Return the slots that were said."""
    call = call_of(row)
    return {key: call[key] for key in call if key != "intent" and call[key] is not None}


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\s,;!?]+(?<![.:])", text.lower())


def read_number(said: str) -> int:
    """Read digits, or one of the words that a time of day is said in."""
    return int(said) if said.isdigit() else NUMBERS[said]


def read_duration(said: str) -> str:
    parts = re.findall(r"(\d+)[ -](hour|minute|second)s?\b", said)
    return "".join(f"{number}{unit[0]}" for number, unit in parts)


def read_time(said: str) -> str:
    """Read a time of day by the rules of the data's README."""
    hour, minute = read_clock(re.sub(r" ?(am|pm|in the \w+)$", "", said))
    if said.endswith(("pm", "afternoon", "evening")) and hour < 12:
        hour += 12
    return f"{hour:02d}:{minute:02d}"


def read_clock(said: str) -> tuple[int, int]:
    said = said.removesuffix(" o'clock")
    if digits := re.fullmatch(r"(\d+)(?:[:.](\d\d))?", said):
        return int(digits[1]), int(digits[2] or 0)
    if half := re.fullmatch(r"half(?: past)? (\w+)", said):
        return read_number(half[1]), 30
    if around := re.fullmatch(r"(.+) (past|to) (\w+)", said):
        minutes, hour = read_number(around[1]), read_number(around[3])
        return (hour, minutes) if around[2] == "past" else (hour - 1, 60 - minutes)
    return read_number(said), 0


READERS = {
    "time": read_time,
    "duration": read_duration,
    "degrees": int,
    "level": int,
}


def similarity(one: str, other: str) -> float:
    """Return the Jaccard index of the words of two patterns, all placeholders being one word."""
    a, b = (set(words_of(re.sub(r"{\w+}", "_", pattern))) for pattern in (one, other))
    return len(a & b) / len(a | b)


def patterns_of(split: str) -> set[str]:
    return {row["pattern"] for row in SPLITS[split]}


def test_the_generator_writes_the_committed_files_byte_for_byte(tmp_path: Path):
    for name in ("make.py", "patterns.json", "values.json"):
        shutil.copy(FOLDER / name, tmp_path)
    subprocess.run([sys.executable, tmp_path / "make.py"], check=True, capture_output=True)
    for split in COUNTS:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_the_splits_have_the_documented_sizes_and_no_sentence_twice():
    assert {split: len(rows) for split, rows in SPLITS.items()} == COUNTS
    assert max(Counter(map(text_of, ALL_ROWS)).values()) == 1


def test_every_row_is_one_short_chat_with_one_system_prompt():
    for row in ALL_ROWS:
        assert list(row) == ["messages", "pattern", "values"]
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert all(list(message) == ["role", "content"] for message in row["messages"])
    assert {row["messages"][0]["content"] for row in ALL_ROWS} == {"Answer in JSON."}


def test_every_answer_is_compact_json_with_all_slots_of_its_intent_in_order():
    for row in ALL_ROWS:
        call = call_of(row)
        answer = json.dumps(call, separators=(",", ":"), ensure_ascii=False)
        assert row["messages"][2]["content"] == answer
        assert list(call) == ["intent", *SLOTS[call["intent"]]]


def test_every_sentence_is_its_pattern_with_its_values():
    for row in ALL_ROWS:
        assert row["pattern"].format(**row["values"]) == text_of(row)
        assert sorted(re.findall(r"{(\w+)}", row["pattern"])) == sorted(row["values"])


def test_every_slot_is_what_an_independent_reader_makes_of_the_words():
    for row in ALL_ROWS:
        read = {slot: READERS.get(slot, str)(said) for slot, said in row["values"].items()}
        assert read == slots_of(row), text_of(row)
        assert all(type(read[slot]) is type(value) for slot, value in slots_of(row).items())


@pytest.mark.parametrize("split", COUNTS)
def test_every_intent_and_slot_is_in_every_split(split: str):
    seen = {(call_of(row)["intent"], slot) for row in SPLITS[split] for slot in slots_of(row)}
    assert seen == {(intent, slot) for intent, slots in SLOTS.items() for slot in slots}


def test_every_train_row_has_a_pattern_of_its_own_and_every_intent_eighty_five():
    patterns = {(call_of(row)["intent"], row["pattern"]) for row in SPLITS["train"]}
    assert len(patterns) == len(SPLITS["train"])
    counts = Counter(intent for intent, _ in patterns)
    assert counts.keys() == SLOTS.keys()
    assert min(counts.values()) >= 85


@pytest.mark.parametrize("split", COUNTS)
def test_at_most_a_quarter_of_the_times_need_twelve_hours_added(split: str):
    times = [row["values"]["time"] for row in SPLITS[split] if "time" in row["values"]]
    later = [said for said in times if said.endswith(("pm", "afternoon", "evening"))]
    assert 0 < len(later) <= len(times) / 4


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_no_pattern_is_in_two_splits(earlier: str, later: str):
    assert not patterns_of(earlier) & patterns_of(later)


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_no_slot_value_is_in_two_splits_whatever_its_slot(earlier: str, later: str):
    values = [
        {value for row in SPLITS[split] for value in slots_of(row).values()}
        for split in (earlier, later)
    ]
    assert not values[0] & values[1]


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_no_value_is_said_in_the_words_of_another_split(earlier: str, later: str):
    said = [
        {value.lower() for row in SPLITS[split] for value in row["values"].values()}
        for split in (earlier, later)
    ]
    assert not said[0] & said[1]


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_no_copied_value_occurs_anywhere_in_the_sentences_of_an_earlier_split(
    earlier: str, later: str
):
    heard = [f" {' '.join(words_of(text_of(row)))} " for row in SPLITS[earlier]]
    said = {
        f" {' '.join(words_of(value))} "
        for row in SPLITS[later]
        for slot, value in row["values"].items()
        if slot not in READERS
    }
    assert [value for value in said if any(value in text for text in heard)] == []


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_no_two_splits_have_nearly_the_same_pattern(earlier: str, later: str):
    pairs = itertools.product(patterns_of(earlier), patterns_of(later))
    score, *pair = max((similarity(one, other), one, other) for one, other in pairs)
    assert score < 0.8, pair


def test_train_says_every_word_that_the_clock_times_and_numbers_of_test_are_made_of():
    heard, needed = (
        {
            word
            for row in SPLITS[split]
            for slot, said in row["values"].items()
            if slot in READERS
            for word in re.findall(r"[a-z']+", said)
        }
        for split in ("train", "test")
    )
    assert needed <= heard
