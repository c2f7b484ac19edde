"""What a rule is, and the table of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from macai.mil.lint.subject import Subject

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a rule applies.

    Attributes:
        message: What is there, with its values.
        function: Name of the function, "" for the package as a whole.
        operation: Name of the operation, "" where it is not about one.
    """

    message: str
    function: str = ""
    operation: str = ""


Check = Callable[[Subject], Iterator[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A trap, and how it is recognised.

    Attributes:
        id: In kebab-case; stays the same for ever.
        severity: An error does not load or gives wrong results; a warning may, or wastes much; a
            note is worth knowing.
        neural_engine: Matters on the Neural Engine only: a note becomes a warning where the bundle
            says that it runs there.
        title: What is wrong, in one line.
        why: What happens then, and who found it.
        fix: What to do.
        subject: The module it is in.
        check: Yields where it applies.
    """

    id: str
    severity: Severity
    title: str
    why: str
    fix: str
    subject: str
    check: Check
    neural_engine: bool = False

    def severity_for(self, subject: Subject) -> Severity:
        """Return how severe it is for what is examined."""
        if self.neural_engine and subject.meant_for_neural_engine:
            return "warning"
        return self.severity


RULES: dict[str, Rule] = {}
"""By id, subject by subject; filled by importing `macai.mil.lint`."""


def rule(
    name: str,
    severity: Severity,
    title: str,
    *,
    why: str,
    fix: str,
    neural_engine: bool = False,
) -> Callable[[Check], Check]:
    """Register a function as the check of a rule."""

    def register(check: Check) -> Check:
        if name in RULES:
            raise ValueError(f"rule {name!r} is registered twice")
        RULES[name] = Rule(
            id=name,
            severity=severity,
            title=title,
            why=why,
            fix=fix,
            subject=check.__module__.rpartition(".")[2],
            check=check,
            neural_engine=neural_engine,
        )
        return check

    return register
