"""A conversation: what was said, and what the model has already computed of it."""

from collections.abc import Generator, Iterator, Sequence

from macai.data.rows import Message
from macai.generate.cache import PromptCache
from macai.generate.decode import FinishReason, Token, generate
from macai.generate.prompt import chat_prompt
from macai.generate.sample import Sampler, greedy
from macai.models.load import LoadedModel


class ChatSession:
    """Asks one question after the other; each time only what is new is computed.

    Attributes:
        messages: What was said so far.
        finish_reason: How the last reply ended; None if it was broken off.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        system: str | None = None,
        max_tokens: int,
        sampler: Sampler = greedy,
        stop: Sequence[str] = (),
    ) -> None:
        self._loaded = loaded
        self._system = system
        self._max_tokens = max_tokens
        self._sampler = sampler
        self._stop = stop
        self._cache = PromptCache(loaded.model)
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self.messages: list[Message] = []
        self.finish_reason: FinishReason | None = None
        if self._system is not None:
            self.messages.append(Message(role="system", content=self._system))

    def say(self, text: str) -> Generator[str, None, None]:
        """Ask, and yield the reply's pieces as they come.

        A reply that is broken off stays in the conversation as far as it went; a question that
        nothing was replied to does not.

        Raises:
            UsageError: the conversation leaves no room in the model's context, or its template
                refuses it; the conversation is as it was.
        """
        question = Message(role="user", content=text)
        prompt_ids = chat_prompt(self._loaded, [*self.messages, question])
        tokens = generate(
            self._loaded,
            prompt_ids,
            max_tokens=self._max_tokens,
            sampler=self._sampler,
            stop=self._stop,
            cache=self._cache,
        )
        return self._reply(question, tokens)

    def _reply(self, question: Message, tokens: Iterator[Token]) -> Generator[str, None, None]:
        self.finish_reason = None
        said = ""
        try:
            for token in tokens:
                said += token.text
                self.finish_reason = token.finish_reason
                if token.text:
                    yield token.text
        finally:
            if said:
                self.messages += [question, Message(role="assistant", content=said)]
