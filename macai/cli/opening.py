"""What the commands that let a model reply have in common: options, and opening the model."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from macai.models.load import LoadedModel

ModelOption = Annotated[
    str, typer.Option("--model", help="A catalogue name, a model folder, a .gguf file or a hub id.")
]
AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", help="Folder of an adapter that macai train wrote.")
]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="Instructions that come before what you say.")
]
MaxTokensOption = Annotated[
    int, typer.Option("--max-tokens", min=1, help="The most tokens of one reply.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0, help="0 takes the likeliest token, 1 draws one.")
]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Draw from the likeliest tokens that hold this share.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="Draw the same tokens at every run.")
]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", help="End the reply before this text; may be repeated."),
]


RuntimeOption = Annotated[
    Literal["reference", "coreml"],
    typer.Option(help="macai's own, anywhere, or Core ML, on a Mac."),
]


def open_model(name: str, adapter: Path | None, seed: int | None = None) -> "LoadedModel":
    """Find, download if need be, and load a model; what takes long is shown on stderr."""
    import mlx.core as mx

    from macai.catalog import locate_model
    from macai.cli.progress import reporting
    from macai.models.adapter import load_adapter
    from macai.models.load import load_model

    with reporting() as progress:
        path = locate_model(name, progress=progress)
    loaded = load_model(path)
    if adapter is not None:
        load_adapter(loaded, adapter)
    if seed is not None:
        mx.random.seed(seed)  # last: making a model draws random weights before it has its own
    return loaded


def refuse_given(ctx: typer.Context, names: Iterable[str], what: str) -> None:
    """Raise UsageError for options on the command line that mean nothing for `what`."""
    from macai.errors import UsageError

    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is not for {what}", hint="leave it out")
