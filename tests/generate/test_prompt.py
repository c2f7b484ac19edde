import dataclasses

import pytest

from macai.data.rows import Message, Row
from macai.data.tokens import tokenise
from macai.errors import UsageError
from macai.generate.prompt import chat_prompt, user_prompt


def without_template(loaded):
    class Plain:
        has_chat_template = False

        def __getattr__(self, name):
            return getattr(loaded.tokenizer, name)

    return dataclasses.replace(loaded, tokenizer=Plain())


def text_of(loaded, ids):
    return loaded.tokenizer.decode(ids)


def test_a_prompt_goes_through_the_chat_template(tiny):
    ids = user_prompt(tiny, "Hello 🙂", system="Be kind.")
    assert text_of(tiny, ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHello 🙂<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(tiny.tokenizer.bos_token_id) == 3


def test_a_raw_prompt_is_the_text_itself(tiny):
    assert text_of(tiny, user_prompt(tiny, " Once", raw=True)) == " Once"


def test_without_a_template_the_text_itself_is_continued(tiny):
    assert text_of(tiny, user_prompt(without_template(tiny), "Once")) == "Once"


def test_a_prompt_is_what_training_puts_before_the_reply(tiny):
    messages = (
        Message(role="user", content="Turn on the light."),
        Message(role="assistant", content='{"intent":"light.on"}'),
    )
    ids = chat_prompt(tiny, messages[:1])
    example = tokenise(Row(source="row", messages=messages), tiny.tokenizer)
    assert example.ids[: len(ids)].tolist() == ids
    assert not example.learn[: len(ids)].any()
    assert example.learn[len(ids)]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused(tiny, text, raw):
    with pytest.raises(UsageError, match="the prompt is empty"):
        user_prompt(tiny, text, raw=raw)


@pytest.mark.parametrize("raw", [True, False])
def test_text_that_is_no_unicode_is_refused(tiny, raw):
    with pytest.raises(UsageError, match="not valid Unicode at character 3"):
        user_prompt(tiny, "ab\udc80", raw=raw)


def test_a_system_prompt_needs_the_template(tiny):
    with pytest.raises(UsageError, match="--raw leaves it out"):
        user_prompt(tiny, "Hi", system="Be kind.", raw=True)
    with pytest.raises(UsageError, match="this model has none"):
        user_prompt(without_template(tiny), "Hi", system="Be kind.")


def test_a_chat_needs_the_template(tiny):
    with pytest.raises(UsageError, match="no chat template"):
        chat_prompt(without_template(tiny), [Message(role="user", content="Hi")])


def test_what_the_template_refuses_is_told(tiny):
    template = "{{ raise_exception('only users speak') }}"
    tokenizer = tiny.tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        with pytest.raises(UsageError, match="the chat template refuses it: only users speak"):
            user_prompt(tiny, "Hi")
    finally:
        tokenizer.chat_template = before
