"""Lint of a saved package or bundle: every trap that is known, looked for in what is on disk.

    lint(path) -> Report

Nothing is run, and nothing but the package is needed. A rule is a function in the module of its
subject; `docs/lint.md` is written from them.
"""

from macai.mil.lint import (
    bundle,
    constants,
    contracts,
    files,
    operations,
    precision,
    shapes,
    states,
    tokenizer,
    weights,
)
from macai.mil.lint.report import Report as Report
from macai.mil.lint.report import lint as lint
from macai.mil.lint.rule import RULES as RULES
from macai.mil.lint.rule import Finding as Finding
from macai.mil.lint.rule import Rule as Rule

__all__ = ["RULES", "Finding", "Report", "Rule", "lint"]
_SUBJECTS = (
    bundle, constants, contracts, files, operations, precision, shapes, states, tokenizer, weights,
)  # fmt: skip
