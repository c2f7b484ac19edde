"""The rows of a run, read and made into examples."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from macai.data.repeats import require_apart
from macai.data.rows import Splits, read_learnt, read_splits
from macai.data.store import example_files
from macai.data.tokens import Prepared
from macai.models.load import Tokenized
from macai.recipe import Recipe
from macai.train.objective import Objective

APART = "take them out of one; data.strict = false trains all the same"


@contextmanager
def prepared_rows(
    recipe: Recipe, objective: Objective, opened: Tokenized, data: Path, *, scratch: Path
) -> Iterator[list[Prepared]]:
    """Yield the sets to learn from and, last, the one to check with.

    Args:
        recipe: Of the run.
        objective: Its.
        opened: The model, or its tokenizer alone.
        data: See `macai.data.rows.read_splits`.
        scratch: A folder to keep the examples in meanwhile.
    """
    limits = recipe.data
    read = read_splits(data)
    mixed = [read_learnt(mix.path) for mix in limits.mix]
    if limits.strict:
        for train in (read.train, *mixed):
            require_apart(Splits(train, read.valid, []), hint=APART)
    with example_files(scratch, 2 + len(mixed)) as kept:
        yield objective.prepare(
            [read.train, *mixed, read.valid],
            opened.tokenizer,
            max_length=limits.max_length,
            truncation=limits.truncation,
            end_ids=opened.eos_token_ids if limits.strict else None,
            kept=kept,
        )
