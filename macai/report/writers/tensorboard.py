"""TensorBoard: event files in `tensorboard/` of the run's folder, by tensorboardX."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from macai.report.writers.writer import Opening

FOLDER = "tensorboard"


class TensorBoard:
    """Writes what `tensorboard --logdir RUN_DIR` shows; see `Writer`."""

    def __init__(self, run: Opening) -> None:
        from tensorboardX import SummaryWriter

        folder = run.out / FOLDER
        if not run.first_step:
            shutil.rmtree(folder, ignore_errors=True)
        # TensorBoard leaves out what an earlier part of the run wrote from this step on.
        again = run.first_step + 1 if run.first_step else None
        # Files have the second they were begun in for a name, which two parts can share.
        suffix = f".{run.first_step}"
        self._writer = SummaryWriter(str(folder), purge_step=again, filename_suffix=suffix)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See Writer."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def picture(self, step: int, name: str, file: Path) -> None:
        """See Writer."""
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._writer.add_image(name, pixels, global_step=step, dataformats="HWC")

    def close(self) -> None:
        """See Writer."""
        self._writer.close()
