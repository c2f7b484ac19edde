"""The command line: one list of commands, and the one place where an error becomes a message.

A command's file imports what is heavy inside its function, so that `--help` answers at once.
"""

import errno
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import macai
from macai.cli import (
    bench,
    chat,
    convert,
    data,
    doctor,
    export,
    export_sd,
    fuse,
    generate,
    image,
    plan,
    quickstart,
    recipes,
    report,
    run,
    score,
    selftest,
    train,
    verify,
)
from macai.cli.interrupt import end_on_signal
from macai.errors import MacaiError
from macai.models.blas import load_fast_blas

app = typer.Typer(
    name="macai",
    help="Tune a model on your Mac, ship it to every Apple device.",
    epilog="Example: macai quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def _add(command: Callable[..., None], to: typer.Typer = app) -> None:
    """Add a command; the example that ends its docstring is put at the end of its help."""
    text, _, example = inspect.cleandoc(command.__doc__ or "").partition("\n\nExample: ")
    to.command(help=text, epilog=f"Example: {example}")(command)


# In the order of `macai --help`, which puts groups last.
_add(quickstart.quickstart)
_add(plan.plan)
_add(train.train)
_add(report.report)
_add(generate.generate)
_add(chat.chat)
_add(score.score)
_add(image.image)
_add(fuse.fuse)
_add(convert.convert)
_add(verify.verify)
_add(run.run)
_add(doctor.doctor)
_add(selftest.selftest)
_add(bench.bench)
_add(export_sd.sd, to=export.app)
app.add_typer(export.app)
app.add_typer(data.app)
app.add_typer(recipes.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"macai {macai.__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    blas = load_fast_blas()
    if sys.platform == "linux" and not blas.found:
        print(
            f"warning: no fast BLAS, so all will be some 20 times slower: {blas.reason}",
            file=sys.stderr,
        )


def main() -> None:
    """Run the command line and exit.

    The exit code is 0, 1 for an error that macai explains, 2 for wrong usage, 130 after an
    interrupt and 143 after a SIGTERM. Anything else is a defect and keeps its traceback.
    """
    end_on_signal()
    try:
        app(prog_name="macai")
    except MacaiError as e:
        print(f"error: {e.message}", file=sys.stderr)
        if e.hint:
            print(f"hint: {e.hint}", file=sys.stderr)
        sys.exit(1)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {e.filename or 'the output'}: {e.strerror}", file=sys.stderr)
        print("hint: free some space on that disk", file=sys.stderr)
        sys.exit(1)
    except SystemExit as e:
        if e.code == 130:  # what typer makes of Ctrl-C
            print("interrupted", file=sys.stderr)
        raise
    finally:
        _flush_stdout()


def _flush_stdout() -> None:
    try:
        if sys.stdout is not None:  # as it is after `>&-`
            sys.stdout.flush()
    except OSError as e:
        # Python would try once more at its exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(e, BrokenPipeError):  # else the reader has all it wanted, as in `| head`
            print(f"error: the output: {e.strerror}", file=sys.stderr)
            sys.exit(1)
