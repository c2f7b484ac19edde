import io
import json
import os
import shutil
import signal
import subprocess
import sys

import mlx.core as mx
import pytest

from macai.generate.decode import generate
from macai.generate.prompt import user_prompt
from macai.generate.text import TextStream
from macai.models.adapter import (
    AdapterConfig,
    adapter_weights,
    save_adapter_config,
    save_adapter_weights,
)
from macai.models.load import load_model
from macai.models.lora import add_lora, linear_paths, lora_layers
from macai.models.peft_config import PeftConfig
from tests.tiny import CONTEXT


@pytest.fixture(scope="module")
def endless(tiny_dir, tmp_path_factory):
    """The same model with a context for minutes of talk."""
    copy = shutil.copytree(tiny_dir, tmp_path_factory.mktemp("endless") / "model")
    config = json.loads((copy / "config.json").read_text())
    config["max_position_embeddings"] = 1_000_000
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def reply(tiny_dir, text, max_tokens, **options):
    loaded = load_model(tiny_dir)
    ids = user_prompt(loaded, text, **options)
    return "".join(token.text for token in generate(loaded, ids, max_tokens=max_tokens))


def give_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "macai", "generate", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_the_reply_and_nothing_else_is_printed(macai, tiny_dir):
    result = macai("generate", "Hello 🐋", "--model", tiny_dir, "--max-tokens", 12)
    assert (result.code, result.err) == (0, "")
    assert result.out == reply(tiny_dir, "Hello 🐋", 12) + "\n"


def test_system_and_raw_choose_the_prompt(macai, tiny_dir):
    options = ("--model", tiny_dir, "--max-tokens", 8)
    kind = macai("generate", "Hello", "--system", "Be kind.", *options)
    assert kind.out == reply(tiny_dir, "Hello", 8, system="Be kind.") + "\n"
    raw = macai("generate", "Hello", "--raw", *options)
    assert raw.out == reply(tiny_dir, "Hello", 8, raw=True) + "\n"
    assert kind.out != raw.out


@pytest.mark.parametrize("arguments", [[], ["-"]])
@pytest.mark.parametrize("content", ["Grüße\n", "Grüße\r\n", "\ufeffGrüße"])
def test_the_prompt_comes_from_stdin(macai, tiny_dir, monkeypatch, arguments, content):
    give_stdin(monkeypatch, content.encode())
    result = macai("generate", *arguments, "--model", tiny_dir, "--max-tokens", 5)
    assert result.out == reply(tiny_dir, "Grüße", 5) + "\n"


def test_json_is_one_line_with_the_measurements(macai, tiny_dir):
    result = macai("generate", "Hello", "--model", tiny_dir, "--max-tokens", 9, "--json")
    value = json.loads(result.out)
    assert result.out.count("\n") == 1
    speeds = [value.pop(k) for k in ("prompt_tokens_per_second", "tokens_per_second")]
    assert all(speed > 0 for speed in speeds)
    assert value.pop("peak_memory_bytes") > 0
    assert value == {
        "text": reply(tiny_dir, "Hello", 9),
        "prompt_tokens": len(user_prompt(load_model(tiny_dir), "Hello")),
        "generated_tokens": 9,
        "finish_reason": "length",
    }


def test_one_token_alone_has_no_speed(macai, tiny_dir):
    result = macai("generate", "Hello", "--model", tiny_dir, "--max-tokens", 1, "--json")
    assert json.loads(result.out)["tokens_per_second"] is None


def test_a_stop_string_ends_the_reply(macai, tiny_dir):
    whole = reply(tiny_dir, "Hello", 20)
    result = macai(
        "generate", "Hello", "--model", tiny_dir, "--stop", "\0", "--stop", whole[5:8], "--json"
    )
    value = json.loads(result.out)
    assert value["text"] == whole[: whole.index(whole[5:8])]
    assert value["finish_reason"] == "stop"


def test_a_seed_draws_the_same_reply(macai, tiny_dir):
    def draw(*options):
        options = ("--temperature", 1, "--top-p", 0.95, "--max-tokens", 20, *options)
        return macai("generate", "Hello", "--model", tiny_dir, *options).out

    assert draw("--seed", 3) == draw("--seed", 3)
    assert draw("--seed", 3) != draw("--seed", 4)


def test_an_adapter_changes_the_reply(macai, tiny_dir, tmp_path):
    loaded = load_model(tiny_dir)
    add_lora(loaded.model, linear_paths(loaded.model), rank=2, alpha=64)
    mx.random.seed(0)
    for layer in lora_layers(loaded.model).values():
        layer["lora_B"] = mx.random.normal(layer["lora_B"].shape)
    config = AdapterConfig(sizes=PeftConfig(2, 64), dropout=0, base_name=str(tiny_dir), base=None)
    save_adapter_config(loaded, tmp_path, config)
    save_adapter_weights(tmp_path, adapter_weights(loaded))
    ids = user_prompt(loaded, "Hello")
    expected = "".join(token.text for token in generate(loaded, ids, max_tokens=10))
    result = macai(
        "generate", "Hello", "--model", tiny_dir, "--adapter", tmp_path, "--max-tokens", 10
    )
    assert result.out == expected + "\n"
    assert expected != reply(tiny_dir, "Hello", 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["  "], "error: the prompt is empty"),
        (["a\udc80"], "error: the prompt is not valid Unicode"),
        (["word " * CONTEXT], f"the model's context {CONTEXT}"),
        (["Hi", "--stop", ""], "error: a stop string is empty"),
        (["Hi", "--top-p", "0"], "error: top_p must be in (0, 1], got 0.0"),
        (["Hi", "--temperature", "inf"], "error: temperature must be 0 or more, got inf"),
        (["Hi", "--raw", "--system", "Be kind."], "--raw leaves it out"),
        (["Hi", "--adapter", "gone"], "error: gone: no adapter_config.json in it"),
    ],
)
def test_what_cannot_be_done_is_one_message(macai, tiny_dir, arguments, message):
    result = macai("generate", *arguments, "--model", tiny_dir)
    assert (result.code, result.out) == (1, "")
    assert message in result.err


@pytest.mark.parametrize(
    "option", [("--max-tokens", "0"), ("--temperature", "-1"), ("--temperature", "nan")]
)
def test_numbers_out_of_range_are_wrong_usage(macai, tiny_dir, option):
    assert macai("generate", "Hi", "--model", tiny_dir, *option).code == 2


def test_stdin_that_is_no_text_is_refused(macai, tiny_dir, monkeypatch):
    give_stdin(monkeypatch, b"ab\xff")
    result = macai("generate", "--model", tiny_dir)
    assert (result.code, result.out) == (1, "")
    assert "error: the prompt on stdin is not UTF-8 at byte 2" in result.err


def test_an_interrupt_ends_the_line_and_exits_with_130(macai, tiny_dir, monkeypatch):
    add, left = TextStream.add, iter(range(5))

    def interrupted(self, token_id):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return add(self, token_id)

    expected = reply(tiny_dir, "Hello", 20)
    monkeypatch.setattr(TextStream, "add", interrupted)
    result = macai("generate", "Hello", "--model", tiny_dir)
    assert result.code == 130
    assert len(result.out) > 5
    assert result.out.endswith("\n")
    assert expected.startswith(result.out[:-1])


@pytest.mark.slow
def test_ctrl_c_ends_a_real_process_with_130(endless):
    process = start("Hello", "--model", endless, "--max-tokens", 900_000)
    begun = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (begun + rest).endswith(b"\n")
    assert b"Traceback" not in err


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(endless):
    with start("Hello", "--model", endless, "--max-tokens", 900_000) as process:
        process.stdout.read(20)
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.slow
def test_without_a_prompt_in_a_terminal_nothing_is_waited_for(tiny_dir):
    terminal, stdin = os.openpty()
    try:
        process = start("--model", tiny_dir, stdin=stdin)
        out, err = process.communicate(timeout=60)
    finally:
        os.close(terminal)
        os.close(stdin)
    assert (process.returncode, out) == (1, b"")
    assert err.startswith(b"error: no prompt\nhint: give one: macai generate")
