"""Calls of a chat model that remembers: what happens before a reply and after it, whole, streamed and async."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import get_config_list

from ..engine.batch import ROWS
from .calls import Call, in_thread
from .settings import Settings


class RememberingChatModel(Settings):
    """Each call begins with :meth:`_begin`, which finds out whose memory it reads, and ends with :meth:`_end`, which
    writes the turn. A reply that was broken off, or failed, writes nothing.
    """

    @abstractmethod
    def _begin(self, input: LanguageModelInput, config: RunnableConfig, kwargs: dict[str, Any]) -> Call:
        """Raises MissingAgentId."""

    @abstractmethod
    def _end(self, call: Call, reply: AIMessage) -> None:
        """Write the turn, and say in the reply's metadata what was written."""

    @abstractmethod
    def _instead(self, kwargs: dict[str, Any]) -> Self | None:
        """Another model, when the call's arguments name one; they lose that name."""

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        if (other := self._instead(kwargs)) is not None:
            return other.invoke(input, config, stop=stop, **kwargs)
        call = self._begin(input, ensure_config(config), kwargs)
        reply = super().invoke(input, call.config, stop=stop, **call.kwargs)
        self._end(call, reply)
        return reply

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        if (other := self._instead(kwargs)) is not None:
            return await other.ainvoke(input, config, stop=stop, **kwargs)
        call = await in_thread(self._begin, input, ensure_config(config), kwargs)
        reply = await super().ainvoke(input, call.config, stop=stop, **call.kwargs)
        await in_thread(self._end, call, reply)
        return reply

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        if (other := self._instead(kwargs)) is not None:
            yield from other.stream(input, config, stop=stop, **kwargs)
            return
        call = self._begin(input, ensure_config(config), kwargs)
        whole: AIMessageChunk | None = None
        for chunk in super().stream(input, call.config, stop=stop, **call.kwargs):
            whole = chunk if whole is None else whole + chunk
            if chunk.chunk_position == "last":
                self._end(call, whole)
                chunk.response_metadata |= call.written
            yield chunk

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        if (other := self._instead(kwargs)) is not None:
            async for chunk in other.astream(input, config, stop=stop, **kwargs):
                yield chunk
            return
        call = await in_thread(self._begin, input, ensure_config(config), kwargs)
        whole: AIMessageChunk | None = None
        async for chunk in super().astream(input, call.config, stop=stop, **call.kwargs):
            whole = chunk if whole is None else whole + chunk
            if chunk.chunk_position == "last":
                await in_thread(self._end, call, whole)
                chunk.response_metadata |= call.written
            yield chunk

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many inputs, up to 64 at the same time: in one batch of the model."""
        configs = get_config_list(config, len(inputs))
        if configs and configs[0].get("max_concurrency") is None:
            configs[0] = {**configs[0], "max_concurrency": min(len(inputs), ROWS)}
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)
