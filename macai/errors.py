"""Every error macai raises on purpose.

MacaiError
├── UsageError          flags or values that do not go together
├── RecipeError         a recipe that cannot be read: unknown or missing key, wrong type
├── DataError           training rows that cannot be used; carries every bad row
├── ModelError          a model, tokenizer or file of weights that cannot be opened
│   └── FormatError     a file that is not what its name says: truncated, wrong magic, absurd header
├── PackageError        a Core ML package that is broken, or whose program cannot be run
│   └── UnsupportedMilOpError  MIL operations the reference runtime does not know, all of them named
├── ExportError         a function or model that cannot become a Core ML package
│   └── UnsupportedOpError     MLX primitives without a lowering, all of them named
├── AdapterError        an adapter that does not belong to this base, or is incomplete
├── FetchError          a download that failed or whose checksum differs
├── ReportError         a benchmark report that cannot be read, or not be compared
├── OutputError         an output that exists already or cannot be written
└── TrainingError       a run that cannot go on: non-finite loss, nothing to learn from

A message says what is wrong with the value; the hint says what to do. `macai.cli.app.main` prints
both and exits with 1. Programming mistakes stay ValueError, TypeError or assert, with a traceback.
"""


class MacaiError(Exception):
    """What every error below is: one message, and a hint that says what to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MacaiError):
    """Flags or values that do not go together."""


class RecipeError(MacaiError):
    """A recipe that cannot be read."""


class DataError(MacaiError):
    """Training rows that cannot be used."""


class ModelError(MacaiError):
    """A model, tokenizer or file of weights that cannot be opened."""


class FormatError(ModelError):
    """A file that is not what its name says."""


class PackageError(MacaiError):
    """A Core ML package that is broken, or whose program cannot be run."""


class UnsupportedMilOpError(PackageError):
    """MIL operations the reference runtime does not know."""


class ExportError(MacaiError):
    """A function or model that cannot become a Core ML package."""


class UnsupportedOpError(ExportError):
    """MLX primitives without a lowering to MIL."""


class AdapterError(MacaiError):
    """An adapter that does not belong to this base, or is incomplete."""


class FetchError(MacaiError):
    """A download that failed or whose checksum differs."""


class ReportError(MacaiError):
    """A benchmark report that cannot be read, or not be compared."""


class OutputError(MacaiError):
    """An output that exists already or cannot be written."""


class TrainingError(MacaiError):
    """A run that cannot go on."""
