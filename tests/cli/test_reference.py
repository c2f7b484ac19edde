from pathlib import Path

from macai.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say_of_themselves():
    current = PAGE.read_text(encoding="utf-8")
    assert current == reference(), "run: python -m macai.cli.reference > docs/cli.md"


def test_every_command_ends_its_help_with_an_example():
    helps = reference().split("\n## ")[1:]
    without = [text.splitlines()[0] for text in helps if "\n  Example: macai " not in text]
    assert without == []


def test_the_page_does_not_depend_on_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert reference() == PAGE.read_text(encoding="utf-8")
