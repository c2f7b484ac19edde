"""Mean loss on rows to check with, of an adapter of either tuner: by one and the same code.

    python -m benchmarks.training.valid_loss --model DIR --data FILE --adapter DIR

Learnt are the replies' tokens with the mark that ends them. An adapter of mlx-lm is put in by
mlx-lm's own function; no adapter is the model as it is.
"""

import argparse
import json
from pathlib import Path

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX
from macai.catalog import locate_model
from macai.data.rows import read_rows
from macai.data.tokens import prepare
from macai.models.adapter import WEIGHTS, load_adapter
from macai.models.load import load_model
from macai.train.evaluate import mean_loss
from macai.train.job import training_ops
from macai.train.loss import logits_for

TOKENS = 1024  # of a batch


def main() -> None:
    """Print one line of JSON."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", required=True, help="a folder, or what macai knows by name")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--adapter", type=Path)
    chosen = options.parse_args()
    loaded = load_model(locate_model(chosen.model, progress=lambda *_: None))
    logits = logits_for(loaded.model)
    if chosen.adapter and (chosen.adapter / WEIGHTS).exists():
        load_adapter(loaded, chosen.adapter)
    elif chosen.adapter:
        from mlx_lm.tuner.utils import load_adapters

        load_adapters(loaded.model, str(chosen.adapter))
    rows = read_rows(chosen.data)
    (prepared,) = prepare([rows], loaded.tokenizer, max_length=2048, truncation="error")
    with training_ops(loaded.model, recompute=False):
        *_, (_, _, loss) = mean_loss(
            loaded.model, prepared.examples, logits=logits, tokens=TOKENS, pad_id=0
        )
    print(json.dumps({"valid_loss": loss}))


if __name__ == "__main__":
    main()
