"""What a user says, as the ids the model continues."""

from collections.abc import Sequence

from macai.data.rows import Message
from macai.data.tokens import render
from macai.errors import UsageError
from macai.models.load import Tokenized


def user_prompt(
    loaded: Tokenized, text: str, *, system: str | None = None, raw: bool = False
) -> list[int]:
    """Return the ids of one question; through the chat template, where there is one.

    Args:
        loaded: The model, or its tokenizer alone.
        text: What the user says.
        system: Instructions that come before it; only with a chat template.
        raw: Leave the template out and let the model continue `text` itself.

    Raises:
        UsageError: the text is empty or not valid Unicode, or there is no template for `system`.
    """
    if not text.strip():
        raise UsageError("the prompt is empty", hint="say something, or pipe it in")
    if loaded.tokenizer.has_chat_template and not raw:
        messages = [Message(role="user", content=text)]
        if system is not None:
            messages.insert(0, Message(role="system", content=system))
        return chat_prompt(loaded, messages)
    if system is not None:
        reason = "--raw leaves it out" if raw else "this model has none"
        raise UsageError(f"a system prompt needs the chat template, and {reason}")
    _require_unicode(text)
    return list(loaded.tokenizer.encode(text))


def chat_prompt(loaded: Tokenized, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation up to where the assistant speaks next.

    They are those that training uses: the template's text, with no special tokens added to it.
    """
    require_template(loaded)
    for message in messages:
        _require_unicode(message.content)
    try:
        text = render(messages, loaded.tokenizer, generation=True)
    except ValueError as e:
        raise UsageError(str(e)) from e
    return list(loaded.tokenizer.encode(text, add_special_tokens=False))


def require_template(loaded: Tokenized) -> None:
    """Raise UsageError if the model cannot be talked with."""
    if not loaded.tokenizer.has_chat_template:
        raise UsageError(
            f"{loaded.path}: the model has no chat template",
            hint="use macai generate --raw, or an instruct model",
        )


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UsageError(f"the prompt is not valid Unicode at character {e.start + 1}") from e
