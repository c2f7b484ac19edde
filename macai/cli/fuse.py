"""`macai fuse`: a model and its adapter become one model."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.cli.opening import ModelOption, open_model
from macai.models.converter import FloatType

if TYPE_CHECKING:
    from macai.data.rows import Row


def fuse(
    model: ModelOption,
    adapter: Annotated[Path, typer.Option(help="Folder of an adapter that macai train wrote.")],
    out: Annotated[Path, typer.Option(help="The folder for the fused model.")],
    dtype: Annotated[FloatType, typer.Option(help="The type of the weights.")] = "float16",
    force: Annotated[
        bool, typer.Option("--force", help="Replace the model that is in --out.")
    ] = False,
    bits: Annotated[
        int | None, typer.Option("--bits", help="Quantise again: 2, 3, 4, 5, 6 or 8; with --data.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Rows it was not tuned on, to compare answers.")
    ] = None,
    raise_bits: Annotated[
        bool, typer.Option("--raise-bits", help="Give layers more bits that need them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Fuse an adapter into its model: a Hugging Face directory that needs no adapter.

    A quantised base is dequantised, as quantising again rounds most of an adapter away. With --bits
    it is done all the same, and what is left is measured: 99 % of the likeliest tokens must stay.

    Example: macai fuse --model smollm2-135m --adapter runs/adapter --out fused

    Example: macai fuse --model M --adapter A --out fused --bits 4 --data test.jsonl --raise-bits
    """
    from macai.cli.progress import reporting
    from macai.files import atomic_directory, refuse_replacing
    from macai.models.fuse import fuse as fuse_into
    from macai.models.fuse import write_model
    from macai.train.agreement import fuse_requantised

    refuse_replacing(out, force=force)  # before minutes go into fetching a model
    rows = _rows(bits, data)
    loaded = open_model(model, adapter)
    facts: dict[str, Any] = {}
    quantization = None
    if bits is None:
        fuse_into(loaded)
    else:
        result = fuse_requantised(loaded, rows, bits=bits, raise_bits=raise_bits)
        quantization = result.config(bits)
        raised = {path: n for path, n in result.bits.items() if n != bits}
        facts = {
            "bits": bits,
            "agreement": result.agreement,
            "plain_agreement": result.plain_agreement,
            "raised": raised,
        }
        print(f"{result.agreement:.2%} of the likeliest tokens stay", file=sys.stderr)
    with atomic_directory(out, force=force) as temporary, reporting() as progress:
        write_model(loaded, temporary, dtype=dtype, quantization=quantization, progress=progress)
    if as_json:
        size = sum(f.stat().st_size for f in out.iterdir())
        print(json.dumps({"model": str(out), "dtype": dtype, "bytes": size} | facts))
    else:
        print(f"model: {out}")


def _rows(bits: int | None, data: Path | None) -> "list[Row]":
    """Return the rows to compare answers on; UsageError unless --bits and --data go together."""
    from macai.data.rows import read_rows
    from macai.errors import UsageError
    from macai.models.requantise import BITS

    if bits is not None and bits not in BITS:
        raise UsageError(
            f"--bits {bits} is no width that weights can have",
            hint=f"there are {', '.join(map(str, BITS))}",
        )
    if (bits is None) != (data is None):
        raise UsageError(
            "--bits and --data belong together",
            hint="rows that the adapter was not tuned on say what quantising takes away",
        )
    return read_rows(data) if data is not None else []
