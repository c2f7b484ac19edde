"""Tests that hold as the trainer is, and must fail with a defect built into it."""

import functools
import inspect

import pytest


def fails_with(*defects):
    """Run the test as it is; then once with each of `tests.train.defects`, when it must fail."""

    def decorate(test):
        @functools.wraps(test)
        def run(defect, monkeypatch, **fixtures):
            if defect is None:
                test(**fixtures)
                return
            defect(monkeypatch)
            with pytest.raises((AssertionError, pytest.fail.Exception)):
                test(**fixtures)

        added = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for name in ("defect", "monkeypatch")
        ]
        own = inspect.signature(test)
        run.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])
        cases = [pytest.param(None, id="as it is")]
        cases += [pytest.param(defect, id=defect.__name__) for defect in defects]
        return pytest.mark.parametrize("defect", cases)(run)

    return decorate
