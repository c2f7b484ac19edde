import pytest

from tests.cli.train.runs import row, write
from tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    write(file, *(row(f"Light {n} in the {'big ' * (n % 7)}room", f"on {n}") for n in range(40)))
    return file
