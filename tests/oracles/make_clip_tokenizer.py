"""Write the token ids that transformers and Apple's Swift package give to hard prompts.

Oracles: transformers' CLIPTokenizer over the shipped vocabulary, with the files of SD 1.x and 2.x;
BPETokenizer.swift of apple/ml-stable-diffusion, compiled. Their versions are in the golden.

    pip install transformers==5.24.0
    python tests/oracles/make_clip_tokenizer.py ML-STABLE-DIFFUSION-CHECKOUT [PREFIX ...]

It needs `swiftc` (6.0 on Linux or a Mac); PREFIX is put before its command line, for a container.

clip_tokenizer.json, one prompt a line: text, ids of SD 1.x without start and end, then those of
SD 2.x and of Swift, each null where they are the same.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers

from macai.diffusion.tokenizer import ClipTokenizer
from tests.diffusion.tokenizer.clip_texts import texts
from tests.diffusion.tokenizer.folders import write_kind

GOLDEN = Path(__file__).parents[1] / "goldens/clip_tokenizer.json"
MAIN = """\
import Foundation
let folder = URL(fileURLWithPath: CommandLine.arguments[1])
func file(_ name: String) -> URL { folder.appendingPathComponent(name) }
let tokenizer = try BPETokenizer(mergesAt: file("merges.txt"), vocabularyAt: file("vocab.json"))
let texts = try JSONDecoder().decode([String].self, from: try Data(contentsOf: file("texts.json")))
let ids = texts.map { Array(tokenizer.tokenize(input: $0).tokenIDs.dropFirst().dropLast()) }
try JSONEncoder().encode(ids).write(to: file("ids.json"))
"""


def transformers_ids(kind: str) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        write_kind(kind, Path(folder))
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    return [tokenizer(text).input_ids[1:-1] for text in texts()]


def swift_ids(checkout: Path, prefix: list[str]) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in (checkout / "swift/StableDiffusion/tokenizer").glob("BPETokenizer*.swift"):
            (folder / source.name).write_bytes(source.read_bytes())
        (folder / "main.swift").write_text(MAIN, encoding="utf-8")
        (folder / "texts.json").write_text(json.dumps(texts()), encoding="utf-8")
        ClipTokenizer.shipped().write(folder)
        script = 'cd "$0" && swiftc -O ./*.swift -o bpe && ./bpe .'
        subprocess.run([*prefix, "bash", "-c", script, name], check=True)
        return json.loads((folder / "ids.json").read_text(encoding="utf-8"))


def main() -> None:
    checkout, prefix = Path(sys.argv[1]), sys.argv[2:]
    git = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    oracle = f"transformers {transformers.__version__}, apple/ml-stable-diffusion {commit}"
    columns = [transformers_ids("sd1"), transformers_ids("sd2"), swift_ids(checkout, prefix)]
    lines = []
    for text, sd1, sd2, swift in zip(texts(), *columns, strict=True):
        row = [text, sd1, None if sd2 == sd1 else sd2, None if swift == sd1 else swift]
        lines.append(json.dumps(row, separators=(",", ":")))
    rows = ",\n".join(lines)
    GOLDEN.write_text(f'{{"oracle": "{oracle}", "rows": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
