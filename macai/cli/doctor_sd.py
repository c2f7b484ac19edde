"""`macai doctor` of a bundle of Stable Diffusion: what apps will stumble over."""

import json
from pathlib import Path

import typer


def examine_sd(folder: Path, *, as_json: bool) -> None:
    """Print what is found in a bundle; the exit code is 1 if there are errors."""
    from macai.coreml.sd.doctor import examine
    from macai.coreml.sd.manifest import read_sd_manifest

    found = examine(folder, read_sd_manifest(folder))
    errors = sum(one.level == "error" for one in found)
    if as_json:
        report = {"errors": errors, "findings": [one.to_json() for one in found]}
        print(json.dumps(report, ensure_ascii=False))
    else:
        for one in found:
            print(f"{one.level}: {one.app}: {one.what}\n  fix: {one.fix}")
        print(f"{len(found)} findings, {errors} of them errors")
    if errors:
        raise typer.Exit(1)
