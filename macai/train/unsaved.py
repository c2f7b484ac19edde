"""What a run leaves that ended before it saved anything: nothing that is worth a question.

Such a folder holds no weights and nothing to resume, so a new run may take its place without
`--force`, and one that ends in the open takes it away itself.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

RECIPE = "recipe.toml"
OTHERS = frozenset(
    {"adapter_config.json", "metrics.jsonl", "run.json", "report.html", "tensorboard", "wandb"}
    | {"cache", "rows"}
)
"""What else a run writes before its first checkpoint and is worth nothing; pictures may be."""


def remove_unsaved(out: Path) -> None:
    """Remove the folder of a run that saved nothing; leave any other as it is.

    A recipe alone is not enough to be one: it may be what a user wrote.
    """
    with contextlib.suppress(OSError):  # what cannot be removed is said when it is written to
        names = {path.name for path in out.iterdir() if not _is_partial(path)}
        if RECIPE in names and names & OTHERS and names <= OTHERS | {RECIPE}:
            shutil.rmtree(out)


@contextlib.contextmanager
def removing_unsaved(out: Path) -> Iterator[None]:
    """If the body raises before the run in `out` saved anything, remove that folder."""
    try:
        yield
    except BaseException:
        remove_unsaved(out)
        raise


def _is_partial(path: Path) -> bool:
    """Whether `path` is what `macai.files` was writing when it was killed."""
    return path.name.startswith(".") and ".partial" in path.name
