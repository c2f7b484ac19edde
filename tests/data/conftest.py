import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from macai.models.load import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    return load_tokenizer(tiny_dir)


@pytest.fixture
def with_template(tiny_dir):
    def with_template(template):
        inner = load_tokenizer(tiny_dir)._tokenizer
        inner.chat_template = template
        return TokenizerWrapper(inner)

    return with_template
