"""Rows that tests of tokens and of truncation share."""

from hypothesis import strategies as st

from macai.data.rows import Message, Row

WORDS = st.text(st.sampled_from("ab <>|_\n\t é🙂"), max_size=12)
SAID = WORDS.filter(lambda t: t.strip() and not t[0].isspace())


def chat(*contents, roles="ua", untrained=()):
    """A row whose turns have the roles u, a, s and t in rotation."""
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    messages = tuple(
        Message(role=names[roles[i % len(roles)]], content=c, train=i not in untrained)
        for i, c in enumerate(contents)
    )
    return Row(source="rows.jsonl:1", messages=messages)
