"""Memory that runs out in a run: the same steps again, in smaller parts."""

from macai.errors import TrainingError
from macai.finetune.run import Run
from macai.train.events import Lowered
from macai.train.exhausted import exhausted
from macai.train.group import ElsewhereError

_HINT = "set batch.recompute=true, a lower data.max_length, fewer adapter.layers or a smaller model"


def halved(run: Run, error: Exception) -> Lowered:
    """Return with how many tokens at once to go on after an error.

    Raises:
        TrainingError: each part of a step is one row already.
        Exception: `error` itself, if neither memory nor a GPU's time ran out.
    """
    why = exhausted(error)
    if why is None:
        raise error
    if run.group is not None and not isinstance(error, ElsewhereError):
        run.group.agree(failed=True)  # the others begin again as well
    parts = [part for step in run.plan(0) for part in step]
    if all(len(part.rows) == 1 for part in parts):
        raise TrainingError(
            f"step {run.progress.step + 1}: {why}, and each row is computed by itself already",
            hint=f"go on with --resume; {_HINT}",
        ) from error
    largest = max(part.padded_tokens for part in parts) * run.workers
    tokens = max(1, min(run.micro_tokens, largest) // 2)
    return Lowered(step=run.progress.step + 1, why=why, micro_tokens=tokens, first_step=0)
