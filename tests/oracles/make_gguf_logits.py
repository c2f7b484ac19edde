"""Write tests/goldens/gguf_smollm2_logits.npz: what torch computes from the converted SmolLM2.

    python tests/oracles/make_gguf_logits.py SmolLM2-135M-Instruct.Q4_1.gguf FOLDER

FOLDER is the same file converted with --dtype float32. The oracle is transformers with torch in
float32 on the CPU, eager attention; their versions are in the golden. So that an error of the
conversion cannot hide in both, transformers' own GGUF loader must give the same logits first.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "goldens" / "gguf_smollm2_logits.npz"

PROMPTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Pi is 3.14159, and the first primes are 2, 3, 5, 7, 11, 13,",
    "Les élèves étudient la géographie à l'école; 日本の首都は",
]


def last_logits(model: Any, prompts: list[list[int]]) -> np.ndarray:
    """Return the logits after each prompt, float32 [prompts, vocabulary]."""
    import torch

    with torch.no_grad():
        rows = [model(torch.tensor([ids])).logits[0, -1].numpy() for ids in prompts]
    return np.stack(rows)


def main() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(source.parent, gguf_file=source.name, **options).eval()
    ours = load(folder, **options).eval()

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    logits = last_logits(ours, prompts)
    difference = np.abs(logits - last_logits(theirs, prompts)).max() / np.abs(logits).max()
    print(f"largest difference to transformers' own GGUF loader: {difference:.2e}")
    assert difference < 1e-5

    np.savez_compressed(
        GOLDEN,
        oracle=f"transformers {transformers.__version__}, torch {torch.__version__}",
        prompts=np.array(PROMPTS),
        ids=np.concatenate(prompts).astype(np.int32),
        lengths=np.array([len(ids) for ids in prompts], np.int32),
        logits=logits,
    )


if __name__ == "__main__":
    main()
