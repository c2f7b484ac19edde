import dataclasses

import pytest

from macai.data.rows import Message
from macai.errors import UsageError
from macai.generate.chat import ChatSession
from macai.generate.decode import generate
from macai.generate.prompt import chat_prompt
from tests.tiny import CONTEXT


def reply_from_scratch(loaded, messages, max_tokens):
    tokens = generate(loaded, chat_prompt(loaded, messages), max_tokens=max_tokens)
    return "".join(token.text for token in tokens)


def said_by_assistant(session):
    return [m.content for m in session.messages if m.role == "assistant"]


def test_each_reply_is_the_one_computed_from_scratch(tiny):
    session = ChatSession(tiny, system="Be kind.", max_tokens=12)
    history = [Message(role="system", content="Be kind.")]
    for text in ("Hello", "And then?", "🐋", "Hello"):
        history.append(Message(role="user", content=text))
        said = "".join(session.say(text))
        assert said == reply_from_scratch(tiny, history, 12)
        history.append(Message(role="assistant", content=said))
    assert session.messages == history


def test_only_what_is_new_is_computed(tiny):
    session = ChatSession(tiny, max_tokens=8)
    list(session.say("A question that is much longer than the second one will be."))
    cache = session._cache
    known = len(cache.ids)
    fed = []
    feed = cache.feed
    cache.feed = lambda ids: fed.append(ids.size) or feed(ids)
    list(session.say("b"))
    total = len(chat_prompt(tiny, session.messages[:3]))
    # Ids of a reply may be others than those of its text; all before the reply must be reused.
    assert sum(fed[:2]) <= total - (known - 8)


def test_a_reply_that_is_broken_off_stays_as_far_as_it_went(tiny):
    session = ChatSession(tiny, max_tokens=20)
    pieces = session.say("Hello")
    begun = next(pieces) + next(pieces)
    pieces.close()
    assert session.messages == [
        Message(role="user", content="Hello"),
        Message(role="assistant", content=begun),
    ]
    assert session.finish_reason is None
    said = "".join(session.say("Go on"))
    assert said == reply_from_scratch(tiny, session.messages[:3], 20)


def test_a_question_without_any_reply_is_forgotten(tiny):
    silent = dataclasses.replace(tiny, eos_token_ids=frozenset(range(tiny.config["vocab_size"])))
    session = ChatSession(silent, max_tokens=20)
    assert list(session.say("Hello")) == []
    assert session.messages == []
    assert session.finish_reason == "stop"


def test_reset_forgets_all_but_the_system_prompt(tiny):
    session = ChatSession(tiny, system="Be kind.", max_tokens=6)
    first = "".join(session.say("Hello"))
    list(session.say("More"))
    session.reset()
    assert session.messages == [Message(role="system", content="Be kind.")]
    assert "".join(session.say("Hello")) == first


def test_a_full_context_is_told_and_leaves_the_conversation_as_it_was(tiny):
    session = ChatSession(tiny, max_tokens=5)
    list(session.say("Hello"))
    before = list(session.messages)
    with pytest.raises(UsageError, match=f"the model's context {CONTEXT}"):
        session.say("word " * CONTEXT)
    assert session.messages == before
    assert "".join(session.say("Hello again"))


def test_stop_strings_end_replies(tiny):
    whole = "".join(ChatSession(tiny, max_tokens=12).say("Hello"))
    session = ChatSession(tiny, max_tokens=12, stop=[whole[4:7]])
    assert "".join(session.say("Hello")) == whole[: whole.index(whole[4:7])]
    assert said_by_assistant(session) == [whole[: whole.index(whole[4:7])]]
