"""Write CLIP's byte-pair merges, and the notice that goes with them, from a public wheel.

    pip download --no-deps open-clip-torch==3.3.0
    python tests/oracles/make_clip_merges.py open_clip_torch-3.3.0-py3-none-any.whl

The wheel's list has 262,145 merges; CLIP's vocabulary is made of the first 48,894. The compressed
file depends on nothing but them and zlib; what it holds is checked in tests/diffusion/tokenizer.
"""

import gzip
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "macai/diffusion/tokenizer/clip_merges.txt.gz"
LIST = "open_clip/bpe_simple_vocab_16e6.txt.gz"
LICENSE = "open_clip_torch-3.3.0.dist-info/licenses/LICENSE"
MERGES = (
    49_408 - 2 * 256 - 2
)  # the vocabulary less each byte, inside and at the end of a word, and two ends


def main() -> None:
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        lines = gzip.decompress(wheel.read(LIST)).decode().split("\n")
        licence = wheel.read(LICENSE).decode()
    merges = "\n".join(lines[1 : MERGES + 1]) + "\n"
    TARGET.write_bytes(gzip.compress(merges.encode(), 9, mtime=0))
    print(f"{TARGET.relative_to(ROOT)}: {MERGES:,} merges, {TARGET.stat().st_size:,} bytes")
    print(f"the licence that NOTICE repeats:\n\n{licence}")


if __name__ == "__main__":
    main()
