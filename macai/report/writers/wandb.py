"""Weights & Biases, as its own settings say: online, or offline with WANDB_MODE=offline."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macai.errors import UsageError
from macai.files import atomic_file
from macai.report.writers.writer import Opening

FOLDER = "wandb"
NAME = "run-id.txt"


class WeightsAndBiases:
    """Writes one run, a resumed one to the same; see `Writer`."""

    def __init__(self, run: Opening) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project="macai",
                id=_id(run),
                resume="allow",
                dir=str(run.out),
                config=dict(run.recipe),
                settings=wandb.Settings(console="off", silent=True, disable_git=True),
            )
        except wandb.Error as e:
            raise UsageError(
                f"wandb: {' '.join(str(e).split())}",
                hint="wandb login; or WANDB_MODE=offline, and wandb sync afterwards",
            ) from e
        self._run.define_metric("*", step_metric="step")  # which may go back, where wandb's may not
        self._picture = wandb.Image

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See Writer."""
        self._log(step, values)

    def picture(self, step: int, name: str, file: Path) -> None:
        """See Writer."""
        self._log(step, {name: self._picture(str(file))})

    def close(self) -> None:
        """See Writer."""
        self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **values})


def _id(run: Opening) -> str:
    """Return the name that wandb knows the run by, the same for all parts of a resumed one."""
    file = run.out / FOLDER / NAME
    if run.first_step and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    name = secrets.token_hex(4)
    with atomic_file(file) as temporary:
        temporary.write_text(name, encoding="utf-8")
    return name
