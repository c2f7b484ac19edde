import io
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from macai.data.rows import read_rows
from macai.generate.chat import ChatSession
from macai.generate.text import TextStream
from macai.models.load import load_model
from tests.tiny import CONTEXT


@pytest.fixture
def talk(macai, tiny_dir, monkeypatch):
    """Runs `macai chat` with lines on stdin."""

    def run(*lines, options=()):
        content = b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return macai("chat", "--model", tiny_dir, "--max-tokens", 10, *options)

    return run


def replies(tiny_dir, *texts, **options):
    session = ChatSession(load_model(tiny_dir), max_tokens=10, **options)
    return ["".join(session.say(text)) for text in texts]


def test_a_script_gets_replies_on_stdout_and_nothing_else(talk, tiny_dir):
    result = talk("Hello", "", "And then? 🐋")
    assert result.code == 0
    assert result.out == "".join(f"{said}\n" for said in replies(tiny_dir, "Hello", "And then? 🐋"))
    assert "> " not in result.err


def test_the_system_prompt_is_part_of_the_conversation(talk, tiny_dir):
    result = talk("Hello", options=("--system", "Be kind."))
    assert result.out == replies(tiny_dir, "Hello", system="Be kind.")[0] + "\n"
    assert result.out != talk("Hello").out


def test_reset_forgets_the_conversation(talk, tiny_dir):
    result = talk("Hello", "/reset", "Hello")
    assert result.out == 2 * f"{replies(tiny_dir, 'Hello')[0]}\n"
    assert "the conversation is forgotten" in result.err


def test_quit_leaves_at_once(talk, tiny_dir):
    assert talk("/quit", "Hello").out == ""


def test_help_names_every_command(talk):
    result = talk("/help")
    assert result.out == ""
    assert all(name in result.err for name in ("/reset", "/save FILE", "/quit", "/help"))


def test_an_unknown_command_is_told_and_not_asked(talk):
    result = talk("/sav x")
    assert (result.code, result.out) == (0, "")
    assert result.err == "unknown command /sav; /help shows what there is\n"


def test_save_writes_a_row_that_training_reads(talk, tiny_dir, tmp_path):
    file = tmp_path / "my talk.json"
    result = talk("Hello", f"/save {file}", options=("--system", "Be kind."))
    said = replies(tiny_dir, "Hello", system="Be kind.")[0]
    messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": said},
    ]
    assert f"{file}: 3 messages" in result.err
    row = tmp_path / "row.jsonl"
    row.write_text(json.dumps({"messages": messages}))
    assert read_rows(row)[0].messages[2].content == said


def test_save_replaces_nothing(talk, tmp_path):
    file = tmp_path / "talk.json"
    file.write_text("mine")
    result = talk(f"/save {file}", "/save", "Hello")
    assert file.read_text() == "mine"
    assert f"error: {file} exists already" in result.err
    assert "error: /save needs the name of a file" in result.err
    assert result.out.count("\n") >= 1


def test_a_file_that_cannot_be_written_does_not_end_the_conversation(talk, tmp_path):
    (tmp_path / "file").write_text("")
    result = talk(f"/save {tmp_path}/file/talk.json", "Hello")
    assert result.code == 0
    assert "error: " in result.err
    assert result.out


def test_a_full_context_is_told_and_the_conversation_goes_on(talk, tiny_dir):
    result = talk("word " * CONTEXT, "Hello")
    assert result.out == replies(tiny_dir, "Hello")[0] + "\n"
    assert f"the model's context {CONTEXT}" in result.err
    assert "/reset" in result.err


def test_bytes_that_are_no_text_do_not_end_the_conversation(talk, tiny_dir):
    result = talk(b"ab\xff", "Hello")
    assert result.out == replies(tiny_dir, "Hello")[0] + "\n"
    assert "error: the prompt is not valid Unicode at character 3" in result.err


def test_a_reply_without_an_end_is_told(talk):
    assert "no tokens left" in talk("Hello").err


def test_an_interrupt_breaks_off_the_reply_and_not_the_program(talk, monkeypatch, tmp_path):
    add, calls = TextStream.add, []

    def interrupted(self, token_id):
        calls.append(token_id)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return add(self, token_id)

    whole = talk("Hello").out
    monkeypatch.setattr(TextStream, "add", interrupted)
    file = tmp_path / "talk.json"
    result = talk("Hello", "Go on", f"/save {file}")
    assert result.code == 0
    assert "(broken off)" in result.err
    messages = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    begun = messages[1]["content"]
    assert begun
    assert whole.startswith(begun)
    assert whole != begun + "\n"
    assert result.out == f"{begun}\n{messages[3]['content']}\n"


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_breaks_off_a_reply_and_ctrl_d_leaves(tiny_dir, tmp_path):
    terminal, inside = os.openpty()
    options = ["--model", str(tiny_dir), "--max-tokens", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "macai", "chat", *options],
        stdin=inside,
        stdout=inside,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},  # no control sequences before a prompt
    )
    os.close(inside)
    file = tmp_path / "talk.json"
    try:
        read_until(terminal, b"> ")
        os.write(terminal, b"Hello\n")
        read_until(terminal, b"Hello\r\n", more=30)
        process.send_signal(signal.SIGINT)
        read_until(terminal, b"\n> ")  # not only "> ": the model may have said that
        interrupt_until(terminal, process, b"> ")  # at the prompt: nothing is lost
        os.write(terminal, f"/save {file}\n".encode())
        read_until(terminal, b"\n> ")
        os.write(terminal, b"\x04")
        assert process.wait(timeout=30) == 0
        err = process.stderr.read().decode()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        os.close(terminal)
    assert "(broken off)" in err
    assert "leave with /quit or Ctrl-D" in err
    assert "Traceback" not in err
    assert len(json.loads(file.read_text())["messages"]) == 2


def interrupt_until(terminal, process, mark):
    """Press Ctrl-C until `mark` comes: Python misses one between a prompt and its reading."""
    for _ in range(30):
        process.send_signal(signal.SIGINT)
        if select.select([terminal], [], [], 2)[0]:
            return read_until(terminal, mark)
    raise AssertionError("Ctrl-C did nothing")


def read_until(terminal, mark, more=0):
    """Read until `mark` and `more` bytes after it have come."""
    seen, deadline = b"", time.monotonic() + 60
    while mark not in seen or len(seen.partition(mark)[2]) < more:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], seen
        seen += os.read(terminal, 4096)
    return seen


def test_an_empty_stop_string_is_refused_before_a_model_is_loaded(macai):
    result = macai("chat", "--model", "no-model", "--stop", "")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: a stop string is empty\nhint: leave --stop out\n"
