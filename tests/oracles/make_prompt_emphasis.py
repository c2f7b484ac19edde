"""Write how diffusers' community pipeline reads the emphasis of prompts.

Oracle: `parse_prompt_attention` of examples/community/lpw_stable_diffusion.py in a checkout of
diffusers, which has stable-diffusion-webui's rules but for BREAK and spaces around a weight.

    python tests/oracles/make_prompt_emphasis.py DIFFUSERS-CHECKOUT
"""

import ast
import json
import random
import re
import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "goldens/prompt_emphasis.json"
SOURCE = "examples/community/lpw_stable_diffusion.py"
NAMES = ("re_attention", "parse_prompt_attention")
HARD = [
    "",
    "plain text",
    "an (important) word",
    "((very)) (nested (twice:1.5)) [less] [[least]]",
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    "(unbalanced and the rest",
    "[unbalanced (twice",
    "unnecessary)(parens)]",
    "(unnecessary)(parens)",
    r"\(literal\] \[brackets\) and \\ and a \lone one",
    "(cross [ing) brackets]",
    "ratio 16:9, time 12:30, (4:3:1.2), (::1.3)",
    "(minus:-0.5) (plus:+.5) (zero:0)",
    ":1.2) closes nothing",
    "(empty:1.3)() [] (:1.5)after",
    "(a:1.2",
    "(word:1.2)(next:1.2)",
    "(日本語:1.4), (café:0.8) 😀",
]
ATOMS = ["a", "b ", " dog,", "(", "(", "[", ")", ")", "]", ":1.2)", ":0.5)", ":-1)", ":.3)", ":+2)"]
ATOMS += [":", ":1", r"\(", r"\)", "\\", r"\\", r"\[", r"\]", "2", "é", "\n"]


def main() -> None:
    show = ["git", "-C", sys.argv[1]]
    source = subprocess.run([*show, "show", f"HEAD:{SOURCE}"], check=True, capture_output=True)
    commit = subprocess.run(
        [*show, "rev-parse", "--short", "HEAD"], check=True, capture_output=True
    )
    names: dict[str, object] = {"re": re}
    for node in ast.parse(source.stdout).body:
        name = getattr(node, "name", None) or getattr(getattr(node, "targets", [None])[0], "id", "")
        if name in NAMES:
            exec(compile(ast.Module([node], []), SOURCE, "exec"), names)
    numbers = random.Random(5)
    texts = HARD + ["".join(numbers.choices(ATOMS, k=numbers.randint(2, 14))) for _ in range(400)]
    texts = [text for text in texts if not re.search(r":[+-]?[.\d]+\s+\)", text)]
    rows = ",\n".join(json.dumps([text, names[NAMES[1]](text)]) for text in texts)
    oracle = f"diffusers {commit.stdout.decode().strip()} {SOURCE}"
    GOLDEN.write_text(f'{{"oracle": "{oracle}", "rows": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
