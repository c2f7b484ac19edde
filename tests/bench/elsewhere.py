"""Another environment, with a copy of macai for which a test may have changed something."""

import shutil
import venv
from pathlib import Path

import numpy as np

import macai

CHECKOUT = Path(macai.__file__).parent.parent


def other_environment(root: Path) -> tuple[Path, Path]:
    """Make one in a folder; return its Python, and the folder of the copy."""
    copied = shutil.copytree(CHECKOUT / "macai", root / "checkout/macai")
    venv.create(root / "env", symlinks=True)
    [packages] = (root / "env").glob("lib/python*/site-packages")
    # In this order: the copy, the sections of the tests, and what macai needs.
    folders = [copied.parent, CHECKOUT, Path(np.__file__).parent.parent]
    (packages / "other.pth").write_text("\n".join(map(str, folders)))
    init = copied / "__init__.py"
    init.write_text(init.read_text().replace(macai.__version__, "0.0.9"))
    return root / "env/bin/python", copied
