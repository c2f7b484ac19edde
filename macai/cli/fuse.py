"""`macai fuse`: a model and its adapter become one model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from macai.cli.opening import ModelOption, open_model
from macai.models.converter import FloatType


def fuse(
    model: ModelOption,
    adapter: Annotated[Path, typer.Option(help="Folder of an adapter that macai train wrote.")],
    out: Annotated[Path, typer.Option(help="The folder for the fused model.")],
    dtype: Annotated[FloatType, typer.Option(help="The type of the weights.")] = "float16",
    force: Annotated[bool, typer.Option("--force", help="Replace what is in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Fuse an adapter into its model: a Hugging Face directory that needs no adapter.

    A quantised base is dequantised: quantising again would round most of the adapter away.

    Example: macai fuse --model smollm2-135m --adapter runs/adapter --out fused
    """
    from macai.cli.progress import reporting
    from macai.files import atomic_directory, refuse_existing
    from macai.models.fuse import fuse as fuse_into
    from macai.models.fuse import write_model

    refuse_existing(out, force=force)  # before minutes go into fetching a model
    loaded = open_model(model, adapter)
    fuse_into(loaded)
    with atomic_directory(out, force=force) as temporary, reporting() as progress:
        write_model(loaded, temporary, dtype=dtype, progress=progress)
    if as_json:
        size = sum(f.stat().st_size for f in out.iterdir())
        print(json.dumps({"model": str(out), "dtype": dtype, "bytes": size}))
    else:
        print(f"model: {out}")
