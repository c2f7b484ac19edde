"""Examine a package by every rule."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from macai.errors import PackageError
from macai.mil.call import guarded
from macai.mil.lint.rule import RULES, SEVERITIES, Finding, Rule, Severity
from macai.mil.lint.subject import Subject, open_subjects


@dataclass(frozen=True, slots=True)
class Applied:
    """A rule that applies, and where."""

    rule: Rule
    severity: Severity
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        path: The package or bundle.
        package: The package examined; of several the first.
        specification_version: Of the package.
        functions: Their names.
        applied: The rules that apply, the most severe first.
    """

    path: Path
    package: Path
    specification_version: int
    functions: tuple[str, ...]
    applied: tuple[Applied, ...]

    @property
    def counts(self) -> dict[Severity, int]:
        """How many findings there are of each severity."""
        counted: Counter[Severity] = Counter()
        for a in self.applied:
            counted[a.severity] += len(a.findings)
        return {severity: counted[severity] for severity in SEVERITIES}

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "path": str(self.path),
            "package": str(self.package),
            "specification_version": self.specification_version,
            "functions": list(self.functions),
            "counts": dict(self.counts),
            "findings": [
                {
                    "rule": a.rule.id,
                    "severity": a.severity,
                    "title": a.rule.title,
                    "function": f.function,
                    "operation": f.operation,
                    "message": f.message,
                    "why": a.rule.why,
                    "fix": a.rule.fix,
                }
                for a in self.applied
                for f in a.findings
            ],
        }


def _findings(rule: Rule, subject: Subject) -> list[Finding]:
    """Return where a rule applies; what makes no sense in a package it meets is a PackageError."""
    where = str(subject.package.path)
    try:
        return guarded(lambda: list(rule.check(subject)), where)
    except OSError as e:
        raise PackageError(f"{e.filename or where}: cannot be read: {e.strerror or e}") from e


def _together(each: list[tuple[Subject, list[Finding]]]) -> list[Finding]:
    """Return what was found in several packages: in all of them once, else with the package."""
    if len(each) == 1:
        return each[0][1]
    shared = [f for f in each[0][1] if not f.function and all(f in found for _, found in each)]
    return shared + [
        replace(f, function=f"{subject.package.path.stem} {f.function}".rstrip())
        for subject, found in each
        for f in found
        if f not in shared
    ]


def lint(path: Path) -> Report:
    """Examine a .mlpackage, or a folder with one in it, or a bundle of several.

    Raises:
        PackageError: it cannot be opened, or is damaged beyond what rules can look at.
    """
    subjects = open_subjects(path)
    subject = subjects[0]
    applied = []
    for rule in RULES.values():
        found = _together([(s, _findings(rule, s)) for s in subjects])
        if found:
            applied.append(Applied(rule, rule.severity_for(subject), tuple(found)))
    applied.sort(key=lambda a: SEVERITIES.index(a.severity))
    return Report(
        path=path,
        package=subject.package.path,
        specification_version=subject.package.specification_version,
        functions=tuple(subject.package.functions),
        applied=tuple(applied),
    )
