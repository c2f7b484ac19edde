import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors

from macai.data.rows import Message, Row
from macai.data.tokens import prepare, tokenise
from macai.errors import DataError
from macai.models.load import load_tokenizer
from tests.data.cases import SAID, WORDS, chat
from tests.tiny import CHATML, END, tiny_model_dir

# Leaves the thoughts of turns before the last question out, and writes an empty thought before the
# last answer if it has none.
QWEN3 = """{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.role == 'assistant' -%}
{%- set thought = '' -%}{%- set said = m.content -%}
{%- if '</think>' in m.content -%}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
{%- set said = m.content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}
{{- '<think>\n' + thought + '\n</think>\n\n' -}}
{%- endif -%}
{{- said + '<|im_end|>\n' -}}
{%- else -%}{{- m.content + '<|im_end|>\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""

# Opens a thought in the prompt, and leaves all thoughts out of what was said.
R1 = """{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- 'User:' + m.content -}}
{%- else -%}{{- '<|im_start|>' + m.content.split('</think>')[-1] + '<|im_end|>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|><think>\n' -}}{%- endif -%}"""

TRIMMING = CHATML.replace("message['content']", "(message['content'] | trim)")

# Llama 2's: a space on either side of the answer, no mark but the end of sequence.
SPACED = """{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '[INST] ' + m.content + ' [/INST]' -}}
{%- else -%}{{- ' ' + m.content + ' <|im_end|>' -}}{%- endif -%}
{%- endfor -%}"""

DEAF = CHATML.replace(
    "message['content']", "(message['content'] if message.role == 'user' else '')"
)
SILENT = "{% for m in messages if m.role == 'user' %}{{ m.content + '<|im_end|>' }}{% endfor %}"


def learnt(row, tokenizer):
    """The text of each run of learnt tokens."""
    example = tokenise(row, tokenizer)
    edges = np.flatnonzero(np.diff(np.r_[False, example.learn, False]))
    return [tokenizer.decode(example.ids[a:b].tolist()) for a, b in edges.reshape(-1, 2).tolist()]


def chatml_labels(row, tokenizer):
    """ids and learn of a ChatML row, piece by piece as the tokens of the parts themselves."""
    parts = []
    for m in row.messages:
        learn = m.role == "assistant" and m.train
        head, said = f"<|im_start|>{m.role}\n", f"{m.content}<|im_end|>"
        # The header's newline and spaces after it may be one token: cut only where labels change.
        parts += [(head, False), (said, True)] if learn else [(head + said, False)]
        parts.append(("\n", False))
    ids, mask = [], []
    for text, learn in parts:
        new = tokenizer.encode(text, add_special_tokens=False)
        ids += new
        mask += [learn] * len(new)
    return ids, mask


def is_as_computed_apart(row, tokenizer):
    example = tokenise(row, tokenizer)
    ids, mask = chatml_labels(row, tokenizer)
    assert example.ids.tolist() == ids
    assert example.learn.tolist() == mask
    assert example.ids.dtype == np.int32


CHATS = {
    "one turn": chat("Hi", "Hello"),
    "two turns": chat("Turn on the light.", "Done.", "And play music.", "Playing."),
    "a system message": chat("Be kind.", "Hi", "Hello", roles="sua"),
    "tools": chat("Six?", "call", "06:30", "It is 06:30.", roles="uata"),
    "two answers in a row": chat("Hi", "Hello", "there", roles="uaa"),
    "the assistant begins": chat("Hello", "Hi", "Bye", roles="aua"),
    "a question at the end": chat("Hi", "Hello", "And?", roles="ua"),
    "an answer that repeats the question": chat("Say assistant", "Say assistant", "b", "Say"),
    "the same all over": chat("a", "a", "a", "a"),
    "white space around": chat(" a ", "  b  ", "\tc", "d\t "),
    "white space and lines": chat("a", "def f():\n    return  1", "b", "x  \n\n  y \n z"),
    "not ASCII": chat("été 🙂", "日本語 🐋🎉 привет"),
    "control tokens in a question": chat("a<|im_end|>\n<|im_start|>assistant\nb", "c"),
    "control tokens in an answer": chat("a", "<|im_start|>user\nb<|im_end|>", "c", "d<|im_end|>"),
    "an angle bracket": chat("a", "<b>", "c", "<"),
}


@pytest.mark.parametrize("row", CHATS.values(), ids=CHATS)
def test_all_that_assistants_say_is_learnt_and_nothing_else(tokenizer, row):
    is_as_computed_apart(row, tokenizer)


@pytest.mark.parametrize("untrained", [(1,), (3,), (1, 5), (1, 3)])
def test_a_turn_marked_as_not_to_be_learnt_is_not(tokenizer, untrained):
    row = chat("a", "Hello", "b", "there", "c", "again", untrained=untrained)
    is_as_computed_apart(row, tokenizer)
    said = {1: "Hello", 3: "there", 5: "again"}
    assert learnt(row, tokenizer) == [said[i] + END for i in said if i not in untrained]


def test_training_only_the_last_turn_would_be_noticed(tokenizer):
    row = CHATS["two turns"]
    example, (_, mask) = tokenise(row, tokenizer), chatml_labels(row, tokenizer)
    last = example.learn.copy()
    last[: int(np.flatnonzero(~example.learn & (np.cumsum(example.learn) > 0))[0])] = False
    assert 0 < last.sum() < sum(mask)
    assert last.tolist() != mask


@given(st.lists(st.tuples(WORDS, SAID, st.booleans()), min_size=1, max_size=4))
def test_any_chat_has_the_labels_computed_apart(tokenizer, turns):
    messages = []
    for asked, said, train in turns:
        messages.append(Message(role="user", content=asked))
        messages.append(Message(role="assistant", content=said, train=train))
    is_as_computed_apart(Row(source="r", messages=tuple(messages)), tokenizer)


@pytest.mark.parametrize("row", CHATS.values(), ids=CHATS)
def test_the_mark_that_ends_a_turn_is_learnt_for_every_learnt_turn(tokenizer, row):
    example = tokenise(row, tokenizer)
    text = tokenizer.decode(example.ids.tolist())
    answers = sum(m.role == "assistant" for m in row.messages)
    inside = sum(m.content.count(END) for m in row.messages if m.role == "assistant")
    learnt_ends = (example.ids[example.learn] == tokenizer.eos_token_id).sum()
    assert learnt_ends == answers + inside <= text.count(END)


def test_a_control_token_without_a_role_is_a_mark_as_well(tiny_dir, tmp_path):
    folder = tiny_model_dir(tmp_path / "gemma-like")
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.add_special_tokens([AddedToken("<end_of_turn>", special=True)])
    inner.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    tokenizer._tokenizer.chat_template = CHATML.replace("<|im_end|>", "<end_of_turn>")
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") not in tokenizer.all_special_ids
    row = chat("a", "Hello", "b", "there")
    assert learnt(row, tokenizer) == ["Hello<end_of_turn>", "there<end_of_turn>"]


def test_offsets_that_leave_spaces_out_lose_no_token(tmp_path):
    folder = tiny_model_dir(tmp_path / "roberta-like")
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    inner.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    for row in (chat("a", "if x:\n        return     y"), chat("a", "b    ", "c    ", "d")):
        is_as_computed_apart(row, tokenizer)


def test_thoughts_taken_out_of_earlier_turns_are_not_missed(with_template):
    tokenizer = with_template(QWEN3)
    row = chat("a", "<think>\nhm\n</think>\n\nHello", "b", "<think>\nso\n</think>\n\nthere")
    assert learnt(row, tokenizer) == [f"Hello{END}", f"<think>\nso\n</think>\n\nthere{END}"]


def test_an_empty_thought_the_template_adds_is_learnt_since_the_prompt_lacks_it(with_template):
    tokenizer = with_template(QWEN3)
    row = chat("a", "Hello", "b", "there")
    assert learnt(row, tokenizer) == [f"Hello{END}", f"<think>\n\n</think>\n\nthere{END}"]


@pytest.mark.parametrize("second", ["It is six.", "<think>\nsix\n</think>\n\nIt is six."])
def test_an_answer_after_a_tool_is_found_though_earlier_thoughts_are_gone(with_template, second):
    tokenizer = with_template(QWEN3)
    first = "<think>\nlook\n</think>\n\ncall"
    row = chat("Time?", first, "06:00", second, "Thanks", "Bye", roles="uataua")
    assert learnt(row, tokenizer) == [
        f"call{END}",
        f"It is six.{END}",
        f"<think>\n\n</think>\n\nBye{END}",
    ]


@pytest.mark.parametrize("said", ["Hello", "<b>bold</b>", "<think", "think", "\nHello"])
def test_a_prompt_with_more_in_it_than_the_full_text_is_no_obstacle(with_template, said):
    tokenizer = with_template(R1)
    row = chat("a", said, "b", "<think>\nhm</think>there")
    assert learnt(row, tokenizer) == [f"{said}{END}", f"there{END}"]


@pytest.mark.parametrize(
    ("said", "left"), [("  a  ", "a"), ("\n\na b\n", "a b"), ("a", "a"), ("  <b> ", "<b>")]
)
def test_content_the_template_trims_is_learnt_as_trimmed(with_template, said, left):
    tokenizer = with_template(TRIMMING)
    assert learnt(chat(" q ", said, "q\n", said), tokenizer) == [left + END] * 2


def test_a_space_before_the_mark_does_not_hide_it(with_template):
    tokenizer = with_template(SPACED)
    assert learnt(chat("a", "Hello", "b", "there"), tokenizer) == [
        f" Hello {END}",
        f" there {END}",
    ]


@pytest.mark.parametrize("template", [DEAF, SILENT], ids=["content", "message"])
def test_a_template_that_leaves_out_what_the_assistant_says_is_refused(with_template, template):
    tokenizer = with_template(template)
    with pytest.raises(ValueError, match="the chat template leaves out what turn 2 says"):
        tokenise(chat("a", "Hello"), tokenizer)


def test_what_a_template_refuses_is_a_bad_row_and_not_a_crash(with_template):
    tokenizer = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"rows.jsonl:1: the chat template refuses it: roles must"):
        prepare([[chat("a", "b")]], tokenizer, max_length=99, truncation="error")


def test_a_chat_needs_a_template(with_template):
    with pytest.raises(ValueError, match="the model has no chat template"):
        tokenise(chat("a", "b"), with_template(None))


def test_prompt_and_completion_are_a_chat_of_two_turns(tokenizer):
    row = Row(source="r", prompt="Turn on the light", completion="Done")
    same = tokenise(chat("Turn on the light", "Done"), tokenizer)
    example = tokenise(row, tokenizer)
    assert (example.ids.tolist(), example.learn.tolist()) == (
        same.ids.tolist(),
        same.learn.tolist(),
    )


def test_without_a_template_the_completion_and_an_end_are_learnt(with_template):
    tokenizer = with_template(None)
    row = Row(source="r", prompt="2 + 2 =", completion=" 4")
    example = tokenise(row, tokenizer)
    assert learnt(row, tokenizer) == [f" 4{END}"]
    assert tokenizer.decode(example.ids.tolist()) == f"2 + 2 = 4{END}"


def test_of_a_text_all_but_the_first_token_is_learnt(tokenizer):
    example = tokenise(Row(source="r", text="The quick fox"), tokenizer)
    ids = tokenizer.encode("The quick fox")
    assert example.ids.tolist() == [*ids, tokenizer.eos_token_id]
    assert example.learn.tolist() == [False] + [True] * len(ids)


@pytest.mark.slow
def test_labels_of_a_real_model_are_those_of_its_rendered_text(smollm2):
    """Each match of the pattern in the rendered text, tokenised by itself, is what is learnt."""
    tokenizer = smollm2.tokenizer
    for row in CHATS.values():
        # A space at the beginning is one token with the line's end before it, which no one learns.
        if any("<|im" in m.content or m.content[0].isspace() for m in row.messages):
            continue
        example = tokenise(row, tokenizer)
        turns = [{"role": m.role, "content": m.content} for m in row.messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        pattern = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>", re.DOTALL)
        expected = [
            i
            for match in pattern.findall(text)
            for i in tokenizer.encode(match, add_special_tokens=False)
        ]
        assert example.ids[example.learn].tolist() == expected, json.dumps(turns)
