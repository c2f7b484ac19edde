import signal
import sys
from dataclasses import dataclass

import pytest

from macai.cli.app import main


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def macai(monkeypatch, capsys):
    """Runs `macai ARGUMENTS` as the installed command does, through its error boundary."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["macai", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        assert isinstance(code, int)
        return Result(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)
