"""Write tests/goldens/greedy_smollm2.json: what transformers replies greedily in float32.

    python tests/oracles/make_greedy.py FOLDER

FOLDER holds SmolLM2-135M-Instruct in Hugging Face's layout, as `macai convert --dtype float32`
writes it. The oracle is transformers with torch on the CPU; their versions are in the golden.
"""

import json
import sys
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent.parent / "goldens" / "greedy_smollm2.json"
NEW_TOKENS = 32

LONG = "Log of the harbour office.\n" + "\n".join(
    f"Day {day}: the {ship} came in at {6 + day % 12}:{day % 6}5 with {day * 7} crates of {cargo}."
    for day, ship, cargo in (
        (day, ("Albatross", "Heron", "Tern")[day % 3], ("tea", "salt", "copper", "wool")[day % 4])
        for day in range(1, 31)
    )
)

# Of each: the system prompt, what the user says, and whether the template is left out.
PROMPTS: list[tuple[str | None, str, bool]] = [
    (None, "What is the capital of France?", False),
    (None, "Name three kinds of whales.", False),
    (None, "Write a Python function that returns the sum of a list of numbers.", False),
    (None, "Explain in two sentences why the sky is blue.", False),
    (None, "Give me a recipe for pancakes, as a numbered list.", False),
    (None, "Translate to French: The cat sleeps on the sofa.", False),
    (None, "¿Cuál es la capital de España? Responde en una frase.", False),
    (None, "Was ist der Unterschied zwischen Größe und Gewicht?", False),
    (None, "日本の首都はどこですか。", False),
    (None, "Столица России - это", False),
    (None, "What do these emoji mean: 🐋🎉🇫🇷 👩‍👩‍👧?", False),
    (None, "Repeat exactly: 🙂🙃 café naïve", False),
    ("You answer with one JSON object and nothing else.", "Set an alarm for 7:45.", False),
    ("You are a pirate.", "How do I tie a bowline knot?", False),
    (None, "x", False),
    (None, f"{LONG}\n\nWhich ship came in on day 12, and with what?", False),
    (None, "Once upon a time, in a small village by the sea,", True),
    (None, "def fibonacci(n):\n    ", True),
    (None, "SELECT name, price FROM products WHERE", True),
    (None, "1, 1, 2, 3, 5, 8, 13,", True),
]


def reply(model: Any, tokenizer: Any, system: str | None, user: str, raw: bool) -> dict[str, Any]:
    """Return the ids of a prompt, the reply's, and how far each step's best logit was ahead."""
    import torch

    if raw:
        prompt_ids = tokenizer(user)["input_ids"]
    else:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        prompt_ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
    ids = torch.tensor([prompt_ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = [torch.topk(logits[0].float(), 2).values for logits in out.logits]
    return {
        "system": system,
        "user": user,
        "raw": raw,
        "prompt_ids": list(prompt_ids),
        "output_ids": out.sequences[0, len(prompt_ids) :].tolist(),
        "margins": [round(float(pair[0] - pair[1]), 6) for pair in best],
    }


def make(folder: Path, which: slice = slice(None)) -> dict[str, Any]:
    """Return the golden's content, of all prompts or of some."""
    import tokenizers
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        replies = [reply(model, tokenizer, *prompt) for prompt in PROMPTS[which]]
    return {
        "script": "tests/oracles/make_greedy.py",
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, tokenizers)},
        "replies": replies,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    golden = make(Path(sys.argv[1]))
    text = json.dumps(golden, ensure_ascii=False)
    GOLDEN.write_text(text.replace('{"system"', '\n{"system"') + "\n", encoding="utf-8")
    print(f"{GOLDEN.name}: {len(golden['replies'])} replies")
