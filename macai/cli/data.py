"""`macai data`: look at rows before a run does."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.cli.opening import ModelOption

if TYPE_CHECKING:
    from macai.data.check import DataReport
    from macai.data.tokens import Example

app = typer.Typer(
    name="data",
    help="Look at training data as a run will see it.",
    epilog="Example: macai data check examples.jsonl --model smollm2-135m",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_ROWS = 5  # of a problem that are named; --json names all
_BAR = 40  # characters
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@app.command(epilog="Example: macai data check examples.jsonl --model smollm2-135m --show 3")
def check(
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder with train.jsonl and valid.jsonl, one file, or hub:owner/name."
        ),
    ],
    model: ModelOption,
    recipe: Annotated[str, typer.Option(help="The recipe of the run to come.")] = "lora",
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: data.max_length=512."),
    ] = None,
    show: Annotated[
        int, typer.Option(min=0, help="Show the tokens of so many rows, and which are learnt.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Say what a run would learn from these rows, and what is wrong with them.

    Rows too long, rows with nothing to learn, replies without an end, rows to check with that are
    learnt too, rows there twice; how long they are, and how much of a step will be padding. Of rows
    with two answers (--recipe dpo) both are looked at. The exit code is 1 if a run would refuse
    them. Only the model's tokenizer is read.
    """
    from macai.catalog import find_recipe, locate_model
    from macai.cli.progress import reporting
    from macai.data import check as checking
    from macai.data.rows import read_splits
    from macai.models.load import load_tokenized
    from macai.recipe import load_recipe
    from macai.train.losses import LOSSES

    wanted = load_recipe(find_recipe(recipe), override or ())
    splits = read_splits(path)
    with reporting() as progress:
        folder = locate_model(model, progress=progress)
    opened = load_tokenized(folder)
    report = checking.check(
        splits,
        opened.tokenizer,
        end_ids=opened.eos_token_ids,
        max_length=wanted.data.max_length,
        truncation=wanted.data.truncation,
        tokens=wanted.batch.tokens,
        form=None if wanted.loss.name == "sft" else LOSSES[wanted.loss.name].form,
        shown=show,
    )
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print_rows(report.examples, opened.tokenizer)
        _print_report(report)
    if report.errors:
        raise typer.Exit(1)


def _print_rows(examples: "list[Example]", tokenizer: Any) -> None:
    """Print each token: learnt ones in colour, or in brackets where there is none."""
    from rich.console import Console
    from rich.text import Text

    from macai.data.check import token_texts

    out = Console(highlight=False, soft_wrap=True)
    for example in examples:
        share = f"{example.learnt_tokens} of {len(example.ids)} tokens learnt"
        out.print(Text(f"{example.source}: {share}", "bold"))
        line = Text()
        for number, (text, learnt) in enumerate(token_texts(example, tokenizer)):
            shown = text.replace("\n", "↵\n")
            if out.color_system is None:
                line.append(f"[{shown}]" if learnt else shown)
            else:  # two shades, to tell a token from the next
                line.append(shown, _SHADES[learnt][number % 2])
        out.print(line)
        out.print()


_SHADES = {True: ("black on green", "black on bright_green"), False: ("dim", "dim underline")}


def _print_report(report: "DataReport") -> None:
    from rich.console import Console
    from rich.text import Text

    out = Console(highlight=False, soft_wrap=True)
    for name, facts in report.splits.items():
        out.print(
            f"{name:6} {facts.rows} rows, {facts.tokens} tokens, {facts.learnt_tokens} of them "
            f"learnt ({facts.learnt_tokens / facts.tokens:.0%}), the longest row {facts.longest}",
            markup=False,
        )
        if facts.chosen_longer is not None:
            out.print(f"       the better answer is the longer one in {facts.chosen_longer:.0%}")
    if report.epoch:
        out.print(
            f"epoch  {report.epoch.steps} steps, {1 - report.epoch.real_share:.0%} of what is "
            f"computed is padding, {len(report.epoch.widths)} widths",
            markup=False,
        )
    most = max((count for _, _, count in report.lengths), default=0)
    for low, below, count in report.lengths:
        bar = "█" * round(_BAR * count / most) or "▏" * bool(count)
        out.print(f"{low:>7} to {below - 1:<7} {count:>7} {bar}".rstrip(), markup=False)
    for problem in report.problems:
        count = len(problem.rows)
        word = Text(f"{problem.severity}: ", _STYLES[problem.severity])
        out.print(word + Text(f"{problem.what}: {count}"))
        for row in problem.rows[:_ROWS]:
            out.print(f"  {row}", markup=False)
        if count > _ROWS:
            out.print(f"  and {count - _ROWS} more", markup=False)
    if not report.problems:
        out.print("nothing is wrong with it")
