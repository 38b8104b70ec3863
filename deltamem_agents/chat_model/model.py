"""The chat model. It reads its agent's memory while it answers; in a plain chain it remembers the turn afterwards."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from threading import Event
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from ..engine.load import local_window
from ..engine.pending import Chunks
from ..engine.tool_calls import forced_names
from ..memory import MemoryState
from ..store import Filter
from .asking import Asked, Said, scaled, to_request, with_reply_id
from .calls import Call, check_arguments, choice_of, in_thread, noted, overflow, traced_step
from .handle import AgentHandle
from .history import seen
from .memory import HEAD, Head
from .messages import to_message, to_reply
from .recall import recall, with_recall
from .remembering import RememberingChatModel
from .replay import Forgotten, forget
from .serving import EMPTY, require_agent, served
from .structured import Method, structured
from .turns import finish_turn, plan_turn, write_earlier

log = logging.getLogger(__name__)


class DeltaMemChatModel(RememberingChatModel):
    """A frozen language model with a memory for each agent.

    Every call serves one agent, named by (the first that is given) ``agent_id=`` with the call,
    ``config["configurable"]["agent_id"]``, ``agent_id`` of the graph's runtime context, the model's own field. The
    answer is computed with its memory at ``memory_version`` (looked for in the same places; "empty": the memory in
    which nothing was written; default: the head).

    In a plain chain, each message that a call is given is remembered once, and so is the answer when it is whole; the
    model sees the current turn of them (``history``). The rules are in turns.py. Inside of LangGraph, and with a memory
    version that was asked for by name, calls only read.

    Example:
        >>> model = DeltaMemChatModel(adapter="./my-adapter", agent_id="otto")  # doctest: +SKIP
        >>> model.invoke("The rice is in room seven.")  # doctest: +SKIP
    """

    # Memory

    def memory(self, agent_id: str) -> AgentHandle:
        """One agent's memory: to write to it, search it, reset it, go back in it, with async twins."""
        return AgentHandle(self, agent_id)

    def remember(
        self,
        messages: Sequence[BaseMessage],
        agent_id: str,
        *,
        parent: str | Head | None = HEAD,
        move_head: bool = True,
        routes: Sequence[Sequence[str]] | None = None,
        thread_id: str | None = None,
        run_id: str | None = None,
    ) -> str | None:
        """Write messages to an agent's memory, exactly once: the same messages after the same parent are one version.

        Args:
            messages: in their order. Summaries and recalled quotations (they say so in
                ``additional_kwargs["lc_source"]``) are left out.
            agent_id: whose memory.
            parent: version to write after (None: the empty memory). Default: the agent's head; when that moves in the
                meantime, the messages are written again after the new one.
            move_head: whether the new version becomes the agent's head.
            routes: names of sub-states for each message, instead of ``additional_kwargs["sub_state"]``, the router and
                the default (human, tool and system messages to ``facts``, replies to ``task_progress``).
            thread_id, run_id: where they come from, for the journal.

        Returns:
            Id of the new version, or of the one that is there already; the parent's (None: there is none) when there
            is nothing to write. Messages whose id was forgotten are left out.

        Raises:
            HeadConflict: ``parent`` was given and is not the head any more.
            FingerprintMismatch: the memory was made by another adapter or backbone.
        """
        return self.memories.remember(messages, agent_id, parent, move_head, routes, thread_id, run_id, self.router)

    async def aremember(self, messages: Sequence[BaseMessage], agent_id: str, **options: Any) -> str | None:
        """:meth:`remember` in a thread of its own."""
        return await asyncio.to_thread(partial(self.remember, messages, agent_id, **options))

    def load_state(self, agent_id: str, version: str | None = None) -> MemoryState:
        """An agent's memory at a version (None: its head); empty for an agent that is not known."""
        return self.memories.load(agent_id, version or self.opened_store.head(agent_id))

    def reset(self, agent_id: str, sub_state: str | None = None) -> str:
        """Empty one sub-state of an agent's memory (None: all of them), as a new version; returns its id."""
        return self.memories.reset(agent_id, sub_state)

    def forget(self, agent_id: str, where: Filter) -> Forgotten:
        """Forget single messages: they go from the journal, the file and every state; see :func:`replay.forget`."""
        return forget(self.memories, agent_id, where)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools.

        Args:
            tool_choice: "auto", "none", "any" (also "required", True): some tool is called; a name: that one is. A call
                that is asked for follows the tool's schema.
            kwargs: ``parallel_tool_calls=False``: at most one call in a reply; others as with a call.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        choice = choice_of(tool_choice)
        forced_names(schemas, choice)
        return self.bind(tools=schemas, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "function_calling",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model, whose replies follow a schema, token by token, and are parsed.

        Args:
            schema: a pydantic class (then the result is an object of it), a TypedDict or a JSON Schema (a dict).
            method: "function_calling": the call of a tool, which the model's template describes to it; "json_schema":
                JSON as the reply; "json_mode": the same, and without a schema any JSON object.
            include_raw: {"raw": message, "parsed": …, "parsing_error": …} instead of what was parsed.
            strict: accepted for other models' sake: replies always follow the schema.
            tools: that may be called instead, with method "json_schema".
            kwargs: as with a call.
        """
        return structured(self, schema, method, include_raw, tools, kwargs)

    # What LangChain calls

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._answer(messages, stop, kwargs, None)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        cancel = Event()
        try:
            return await in_thread(self._answer, messages, stop, kwargs, cancel)
        except asyncio.CancelledError:
            cancel.set()
            raise

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks, said = self._chunks(messages, stop, kwargs)
        with closing(chunks):
            for chunk in chunks:
                yield said.chunk(chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks, said = await in_thread(self._chunks, messages, stop, kwargs)
        with closing(chunks):
            while (chunk := await in_thread(next, chunks, None)) is not None:
                yield said.chunk(chunk)

    def _answer(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any], cancel: Event | None
    ) -> ChatResult:
        asked = self._asked(messages, stop, kwargs)
        timeout = kwargs.get("timeout", self.timeout)
        with overflow():
            if timeout is None:
                (generation,) = self.engine.scheduler.generate([asked.request], [asked.state], cancel)
            else:
                generation = self.engine.scheduler.submit(asked.request, asked.state, cancel).result(timeout)
        reply = to_reply(generation, asked.metadata, asked.request.reply_id)
        return ChatResult(generations=[ChatGeneration(message=reply)])

    def _chunks(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[Chunks, Said]:
        asked = self._asked(messages, stop, kwargs)
        with overflow():
            reply = self.engine.scheduler.submit(asked.request, asked.state)
        return Chunks(reply, kwargs.get("timeout", self.timeout)), Said(asked)

    def _asked(self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]) -> Asked:
        metadata: dict[str, Any] = {"model_name": self.adapter, "model_provider": "deltamem"}
        seen_now = seen(messages, self._policy(kwargs), self.get_num_tokens_from_messages)
        state = None
        read: tuple[Any, ...] = ()
        if kwargs.get("use_memory", self.use_memory):
            agent_id = require_agent(kwargs.get("agent_id"), self.agent_id)
            version = self._version(agent_id, kwargs)
            read = agent_id, version, kwargs.get("memory_scale", self.memory_scale)
            state = scaled(self.memories.load(agent_id, version), read[-1])
            metadata["memory_version"] = version
            if (k := kwargs.get("recall", self.recall)) and version is not None:
                limit = kwargs.get("recall_tokens", self.recall_tokens)
                recalled = recall(
                    self.opened_store, agent_id, seen_now, k, limit, self.get_num_tokens, version_id=version
                )
                seen_now = with_recall(seen_now, recalled)
                metadata["recalled"] = 0 if recalled is None else len(recalled.entries)
                if recalled is not None and kwargs.get("trace_quotes", self.trace_quotes):
                    metadata["recalled_text"] = recalled.text
                    log.debug("agent %s, version %s, quoted: %s", agent_id, version, recalled.text)
        request = to_request(seen_now, stop, {**self._settings, **kwargs})
        return Asked(with_reply_id(request, seen_now, *read), state, metadata)

    def _version(self, agent_id: str, kwargs: Mapping[str, Any]) -> str | None:
        """The version that a call reads (None: the empty memory)."""
        if "memory_version" in kwargs:
            version = kwargs["memory_version"]
        else:
            version = self.memory_version or self.opened_store.head(agent_id)
        return None if version == EMPTY else version

    def _instead(self, kwargs: dict[str, Any]) -> "DeltaMemChatModel | None":
        name = kwargs.pop("model", None)
        if name is None or name == self.adapter:
            return None
        return self.model_copy(update={"adapter": str(name), "backbone": None, "revision": None})

    def _begin(self, input: LanguageModelInput, config: RunnableConfig, kwargs: dict[str, Any]) -> Call:
        """So that caches and traces see them, agent id and memory version are arguments of the call."""
        check_arguments(kwargs)
        if not kwargs.get("use_memory", self.use_memory):
            return Call(config, {key: kwargs[key] for key in kwargs if key not in ("agent_id", "memory_version")})
        who = served(config, kwargs, self.agent_id, self.memory_version)
        plan = None
        version = who.pinned
        if version is None and self.remembers is not False and not (self.remembers is None and who.in_graph):
            messages = self._convert_input(input).to_messages()
            plan = write_earlier(self.memories, who, plan_turn(self.memories, who, messages), self.router)
            version = plan.version
        elif version is None:
            version = self.opened_store.head(who.agent_id)
        elif version == EMPTY:
            version = None
        facts = {"agent_id": who.agent_id, "memory_version": version, "recall": kwargs.get("recall", self.recall)}
        return Call(noted(config, facts), kwargs | {"agent_id": who.agent_id, "memory_version": version}, who, plan)

    def _end(self, call: Call, reply: AIMessage) -> None:
        if call.who is not None and call.plan is not None:
            who, plan = call.who, call.plan
            step = partial(finish_turn, self.memories, who, plan, reply, self.router)
            call.written = traced_step("deltamem_remember", step, call.config)
            reply.response_metadata |= call.written

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of LangChain's caches: an answer depends on whose memory was read, and on its version."""
        key = super()._get_llm_string(stop=stop, **kwargs)
        if not kwargs.get("use_memory", self.use_memory):
            return key
        agent_id = require_agent(kwargs.get("agent_id"), self.agent_id)
        version = self._version(agent_id, kwargs)
        return "---".join((key, self.opened_store.location, self.tenant, agent_id, str(version)))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Length of the prompt in tokens, schemas of tools included."""
        schemas = [convert_to_openai_tool(tool) for tool in tools or ()]
        return len(self.engine.text.prompt([to_message(message) for message in messages], schemas or None))

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of text, in which nothing is a control token."""
        return self.engine.text.plain(text)

    def _resolve_model_profile(self) -> ModelProfile | None:
        window = local_window(self.adapter, self.backbone)
        return None if window is None else ModelProfile(max_input_tokens=window, tool_calling=True, text_inputs=True)

    @property
    def _llm_type(self) -> str:
        return "deltamem"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("adapter", "backbone", "dtype", "temperature", "max_tokens", "top_p", "stop", "seed", "use_memory")
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "deltamem"
        params["ls_model_name"] = kwargs.get("model") or self.adapter
        return params
