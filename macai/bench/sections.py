"""The processes that measure, one a section: of this environment, or of another one.

Each is a new Python that is told what to open, so it may be one that has another version of macai.
"""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from macai.bench.figure import Figure, Opener
from macai.bench.worker import PROTOCOL
from macai.child import ended
from macai.errors import MacaiError, ModelError, UsageError

INTRODUCTION_SECONDS = 60.0
"""How long a process may take to say who it is: it has imported little until then."""
APART = "measure it with its own macai bench, then: macai bench --compare A B"
_PYTHON = ("PYTHONPATH", "PYTHONHOME", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
"""Variables by which a Python finds its modules: this one's are not another environment's."""


@dataclass(frozen=True, slots=True)
class Version:
    """The macai that measures.

    Attributes:
        number: Its version.
        packages: Versions of what matters in its environment; None where it is not installed.
        folder: Where it was imported from; nothing for a report.
    """

    number: str
    packages: Mapping[str, str | None]
    folder: str


class Sections:
    """The processes of a run. A context manager: after the block there is none.

    Attributes:
        version: Who measures: known once a section is open.
    """

    version: Version

    def __init__(self, openers: Mapping[str, Opener], *, python: Path | None = None) -> None:
        """Take what opens each section, and the Python of another environment if it is not this.

        Raises:
            UsageError: there is no such Python.
        """
        self._openers = dict(openers)
        self._python: Path | None = None
        if python is not None:
            found = shutil.which(python)
            if found is None:
                raise _no_python(python)
            self._python = Path(found).absolute()  # not resolved: a link makes an environment
        self._processes: dict[str, tuple[subprocess.Popen[bytes], Connection]] = {}

    def __enter__(self) -> "Sections":
        return self

    def __exit__(self, *error: object) -> None:
        for _, connection in self._processes.values():
            connection.close()  # by which they end
        for process, _ in self._processes.values():
            ended(process)
        self._processes = {}

    def kill(self) -> None:
        """End the processes at once, whatever they do."""
        for process, _ in self._processes.values():
            process.kill()

    def open(self, name: str) -> list[Mapping[str, Figure]]:
        """Start a section's process and return the figures of each of its cases."""
        try:
            self._processes[name] = _spawn(self._python)
        except OSError as e:  # a script that does not say what runs it, say
            raise _no_python(self._python or sys.executable) from e
        self.version = self._introduced(name)
        self._send(name, self._openers[name])
        return self._receive(name)

    def sample(self, name: str, case: int) -> tuple[dict[str, float], float]:
        """Let a section do a case; return its values, and the processor seconds it took."""
        self._send(name, case)
        return self._receive(name)

    def _introduced(self, name: str) -> Version:
        process, connection = self._processes[name]
        try:
            if not connection.poll(INTRODUCTION_SECONDS):
                process.kill()
            said = connection.recv()
        except (EOFError, OSError) as e:
            raise ModelError(
                f"{self._python or sys.executable} did not become a process that measures: "
                f"it ended with code {ended(process)}",
                hint="is macai in that environment, and not too old for this? If it is too old, "
                + APART,
            ) from e
        if said["protocol"] != PROTOCOL:
            raise ModelError(
                f"macai {said['version']} of {self._python} is told what to measure in another way",
                hint=APART,
            )
        return Version(said["version"], said["versions"], said["folder"])

    def _send(self, name: str, message: object) -> None:
        process, connection = self._processes[name]
        try:
            connection.send(message)
        except OSError as e:
            raise _gone(name, process) from e

    def _receive(self, name: str) -> Any:
        process, connection = self._processes[name]
        try:
            answer = connection.recv()
        except (EOFError, OSError) as e:
            raise _gone(name, process) from e
        except (pickle.UnpicklingError, AttributeError, ImportError, TypeError) as e:
            raise ModelError(
                f"what {self._python} answers is not known here: {e}", hint=APART
            ) from e
        if isinstance(answer, Exception):
            raise self._said(answer)
        return answer

    def _said(self, error: Exception) -> Exception:
        """Return what to raise for an error of a section: of another version, with its place."""
        if self._python is None:
            return error
        message = str(error).splitlines()[0]
        hint = error.hint if isinstance(error, MacaiError) else APART
        return ModelError(f"{self._python}: {message}", hint=hint)


def _spawn(python: Path | None) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a process, of this environment with this one's modules, and return it connected."""
    if python is None:
        path = os.pathsep.join(str(Path(folder).absolute()) for folder in sys.path)
        variables = {**os.environ, "PYTHONPATH": path}
    else:
        variables = {key: value for key, value in os.environ.items() if key not in _PYTHON}
    ours, theirs = Pipe()
    with theirs, _held_signals():
        process = subprocess.Popen(
            # -P: no folder that happens to be the current one
            [python or sys.executable, "-P", "-m", "macai.bench.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what is printed on ours is the report
            pass_fds=(theirs.fileno(),),
            env=variables,
        )
    return process, ours


@contextmanager
def _held_signals() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM: a new process inherits that until it ignores them."""
    held = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _no_python(path: Path | str) -> UsageError:
    hint = "give that of an environment: ../other/.venv/bin/python"
    return UsageError(f"{path} is no Python to run", hint=hint)


def _gone(name: str, process: subprocess.Popen[bytes]) -> ModelError:
    return ModelError(
        f"the process that measured '{name}' ended with code {ended(process)}",
        hint="memory ran out? measure less at once: macai bench " + name,
    )
