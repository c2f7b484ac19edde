"""`docs/lint.md`: every rule's own words.

Run `python -m macai.mil.lint.page > docs/lint.md` after changing a rule.
"""

import sys

from macai.mil.lint import RULES, Rule

_HEAD = """# What macai doctor finds in a package

Written by `python -m macai.mil.lint.page > docs/lint.md` from the rules themselves.

`macai doctor PACKAGE` examines a saved `.mlpackage`, whoever made it, or a bundle of macai: it
reads the files and runs nothing. An **error** does not load or gives wrong results, a **warning**
may, or wastes much, a **note** is worth knowing. A rule about the Neural Engine is a note, and a
warning where the bundle says it runs there. Most of what is below was reported by others for the
systems they name, and was not tried on a device here.
"""


def page() -> str:
    """Return the page in Markdown."""
    subjects: dict[str, list[Rule]] = {}
    for rule in RULES.values():
        subjects.setdefault(rule.subject, []).append(rule)
    return _HEAD + "".join(_section(name, rules) for name, rules in sorted(subjects.items()))


def _section(name: str, rules: list[Rule]) -> str:
    about = (sys.modules[f"macai.mil.lint.{name}"].__doc__ or "").splitlines()[0]
    text = f"\n## {name.capitalize()}\n\n{about}\n"
    for rule in rules:
        kind = f"{rule.severity}, Neural Engine" if rule.neural_engine else rule.severity
        text += f"\n### {rule.id}\n\n**{kind}**: {rule.title}.\n\n{rule.why}\n\nFix: {rule.fix}\n"
    return text


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
