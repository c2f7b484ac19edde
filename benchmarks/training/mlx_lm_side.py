"""A run of mlx-lm's tuner as it is shipped, in its own environment: prints what it did, as JSON.

    PYTHON mlx_lm_side.py CONFIG.json BLAS.py

CONFIG is what `mlx_lm.lora --config` takes. BLAS.py is macai's own `macai/models/blas.py`, which
needs nothing but the standard library: so both sides have the same BLAS, loaded in the same way.
Nothing of the tuner is changed; its batches are counted as they go by.
"""

import importlib.util
import json
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_blas: Any = importlib.util.spec_from_file_location("blas", sys.argv[2])
_module: Any = importlib.util.module_from_spec(_blas)
sys.modules["blas"] = _module
_blas.loader.exec_module(_module)
BLAS = _module.load_fast_blas()  # before MLX

import mlx.core as mx  # noqa: E402
from mlx_lm import lora  # noqa: E402, TID253
from mlx_lm.tuner.callbacks import TrainingCallback  # noqa: E402, TID253
from mlx_lm.tuner.trainer import iterate_batches, train  # noqa: E402, TID253

COUNTS = {"real": 0, "processed": 0, "learnt": 0}
CPU: list[float] = []
"""Processor time: as training begins, and at the beginning and end of each validation."""
REPORTS: list[dict[str, Any]] = []


class Keep(TrainingCallback):  # type: ignore[misc]
    """Keeps what the tuner reports."""

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        REPORTS.append(train_info)

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        CPU.append(time.process_time())


def counted(*args: Any, **options: Any) -> Iterator[Any]:
    """Yield the tuner's own batches; count those of the training rows."""
    training = options.get("loop")  # the training rows, and no validation's
    CPU.append(time.process_time())
    for batch, spans in iterate_batches(*args, **options):
        if training:
            COUNTS["real"] += spans[:, 1].sum().item()
            COUNTS["learnt"] += (spans[:, 1] - spans[:, 0]).sum().item()
            COUNTS["processed"] += batch.shape[0] * (batch.shape[1] - 1)
        yield batch, spans


def main() -> None:
    """Train, and print one line of JSON after the tuner's own."""
    config = lora.CONFIG_DEFAULTS | json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))

    def watched(*args: Any, **options: Any) -> None:
        train(*args, **options | {"iterate_batches": counted, "training_callback": Keep()})
        CPU.append(time.process_time())

    lora.train = watched
    lora.run(types.SimpleNamespace(**config))
    iterations = config["iters"]
    assert [r["iteration"] for r in REPORTS] == [iterations], "one report: of all steps"
    rows = iterations * config["batch_size"]
    result = {
        "steps": iterations,
        "real_tokens": COUNTS["real"],
        "processed_tokens": COUNTS["processed"],
        "learnt_tokens": COUNTS["learnt"],
        # A row's last token is no input: nothing follows it.
        "useful_share": (COUNTS["real"] - rows) / COUNTS["processed"],
        "train_seconds": iterations / REPORTS[0]["iterations_per_second"],
        # From the first point to the last, less what lies between validations' ends.
        "train_cpu_seconds": sum(CPU[1::2]) - sum(CPU[::2]),
        "mlx_peak_bytes": mx.get_peak_memory(),
        "fast_products": BLAS.found or mx.default_device() != mx.cpu,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
