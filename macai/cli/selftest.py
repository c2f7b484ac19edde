"""`macai selftest`: proofs that training does here what it should."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from macai.selftest.proofs import Result

DEFAULT_MODEL = "smollm2-135m"
_WORDS = {True: ("held", "green"), False: ("FAILED", "bold red"), None: ("not here", "yellow")}


def selftest(
    model: Annotated[
        str | None,
        typer.Option(
            help="Also on this model: a catalogue name, a folder, a .gguf file or a hub id. "
            f"Without it, on {DEFAULT_MODEL} if that is here already.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Prove on this machine that training does what it should; the exit code is 1 if it does not.

    Each claim is checked against something computed in another way: a batch against its parts, a
    resumed run against one that nothing stopped, a loss against one computed a token at a time. All
    are made on a tiny model with random weights, those that are about a model on a real one too.

    Example: macai selftest
    """
    import mlx.core as mx

    from macai.catalog import cached_models, locate_model
    from macai.cli.progress import reporting
    from macai.page.machine import machine, versions
    from macai.selftest.proofs import prove

    if model is None and any(path.name == DEFAULT_MODEL for path in cached_models()):
        model = DEFAULT_MODEL
    with reporting() as progress:
        folder = None if model is None else locate_model(model, progress=progress)
        results = list(prove(folder, name=model or "", progress=progress))
    if as_json:
        value = {
            "machine": machine(),
            "versions": versions(),
            "device": "gpu" if mx.default_device() == mx.gpu else "cpu",
            "proofs": [result.to_json() for result in results],
        }
        print(json.dumps(value, ensure_ascii=False))
    else:
        _print(results)
    if any(result.held is False for result in results):
        raise typer.Exit(1)


def _print(results: list["Result"]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "claim", "model", "found", "seconds", box=None, pad_edge=False)
    for result in results:
        word, style = _WORDS[result.held]
        table.add_row(
            Text(word, style), result.claim, result.model, result.measure, f"{result.seconds:.1f}"
        )
    Console(highlight=False).print(table)
    failed = sum(result.held is False for result in results)
    seconds = sum(result.seconds for result in results)
    held = sum(result.held is True for result in results)
    print(f"{held} of {len(results)} held, {failed} failed, in {seconds:.0f} s")
