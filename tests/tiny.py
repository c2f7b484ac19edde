"""The tiny model that `macai selftest` proves things on, for tests."""

from macai.selftest.tiny import BEGIN as BEGIN
from macai.selftest.tiny import CHATML as CHATML
from macai.selftest.tiny import CONTEXT as CONTEXT
from macai.selftest.tiny import END as END
from macai.selftest.tiny import tiny_model_dir as tiny_model_dir
from macai.selftest.tiny import tiny_tokenizer as tiny_tokenizer
