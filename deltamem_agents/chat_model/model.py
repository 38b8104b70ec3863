"""The chat model. It reads its agent's memory while it answers; in a plain chain it remembers the turn afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from threading import Event
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, field_validator

from ..config import DEFAULT_ADAPTER
from ..engine import Engine, Request, load_engine
from ..engine.batch import ROWS
from ..engine.load import local_window
from ..engine.tool_calls import forced_names
from ..memory import MemoryState
from ..store import DEFAULT_TENANT, Filter, Store
from .calls import choice_of, in_thread, overflow
from .memory import HEAD, AgentMemory, Head, shared_store
from .messages import last_turn, to_last_chunk, to_message, to_reply
from .replay import Forgotten, forget
from .serving import Served, require_agent, served


class DeltaMemChatModel(BaseChatModel):
    """A frozen language model with a memory for each agent.

    Every call serves one agent, named by (the first that is given) ``agent_id=`` with the call,
    ``config["configurable"]["agent_id"]``, ``agent_id`` of the graph's runtime context, the model's own field. The
    answer is computed with its memory at ``memory_version`` (looked for in the same places; default: the head).

    In a plain chain, the turn (what was said since the last reply, and the answer) is remembered after a whole answer.
    Inside of LangGraph, and with a memory version that was asked for by name, calls only read.

    Example:
        >>> model = DeltaMemChatModel(adapter="./my-adapter", agent_id="otto")  # doctest: +SKIP
        >>> model.invoke("The rice is in room seven.")  # doctest: +SKIP
    """

    model_config = ConfigDict(populate_by_name=True)

    adapter: str = DEFAULT_ADAPTER
    """Name, folder or hub id of the adapter."""
    backbone: str | None = None
    """Folder or hub id of the backbone; default: the adapter's own."""
    device: str | None = None
    dtype: str | None = None
    decode: str | None = None
    """How tokens are computed: "eager", "graph" (default on CUDA) or "compile" (faster, some seconds more at first)."""
    agent_id: str | None = None
    store: str | None = None
    """Path or URL of the store; default: that of the configuration. DELTAMEM_STORE_KEY opens an encrypted one."""
    tenant: str = DEFAULT_TENANT
    """Whose agents these are, in a store that several share."""
    temperature: float = 0.0
    max_tokens: int = 256
    top_p: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    remembers: bool | None = Field(default=None, alias="remember")
    """Whether calls write the turn: None: in a plain chain only; given to the constructor as ``remember``, too."""
    memory: bool = True
    """False: the frozen backbone alone, which needs no agent and remembers nothing."""
    memory_version: str | None = None

    @field_validator("adapter", "backbone", "store", "dtype", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, str) else str(value).removeprefix("torch.")

    # What is shared by all models of the process

    @property
    def engine(self) -> Engine:
        """The loaded backbone and adapter; loaded at the first use."""
        return load_engine(
            self.adapter, backbone=self.backbone, dtype=self.dtype, device=self.device, decode=self.decode
        )

    @property
    def memories(self) -> AgentMemory:
        """The agents' memories in the store, for this engine."""
        return AgentMemory(self.engine, self.opened_store)

    @property
    def opened_store(self) -> Store:
        """The store; opened at the first use."""
        return shared_store(self.store, self.tenant)

    # Memory

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
            messages: in their order. Summaries (``additional_kwargs["lc_source"] == "summarization"``) are left out.
            agent_id: whose memory.
            parent: version to write after (None: the empty memory). Default: the agent's head; when that moves in the
                meantime, the messages are written again after the new one.
            move_head: whether the new version becomes the agent's head.
            routes: names of sub-states for each message, instead of ``additional_kwargs["sub_state"]`` and the default
                (human, tool and system messages to ``facts``, replies to ``task_progress``).
            thread_id, run_id: where they come from, for the journal.

        Returns:
            Id of the new version, or of the one that is there already; the parent's (None: there is none) when there
            is nothing to write. Messages whose id was forgotten are left out.

        Raises:
            HeadConflict: ``parent`` was given and is not the head any more.
            FingerprintMismatch: the memory was made by another adapter or backbone.
        """
        return self.memories.remember(messages, agent_id, parent, move_head, routes, thread_id, run_id)

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

    # Calls

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        config = ensure_config(config)
        who, kwargs = self._serve(config, kwargs)
        reply = super().invoke(input, config, stop=stop, **kwargs)
        self._remember_turn(who, input, reply)
        return reply

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        config = ensure_config(config)
        who, kwargs = await in_thread(self._serve, config, kwargs)
        reply = await super().ainvoke(input, config, stop=stop, **kwargs)
        await in_thread(self._remember_turn, who, input, reply)
        return reply

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        config = ensure_config(config)
        who, kwargs = self._serve(config, kwargs)
        whole: AIMessageChunk | None = None
        for chunk in super().stream(input, config, stop=stop, **kwargs):
            whole = chunk if whole is None else whole + chunk
            if chunk.chunk_position == "last":
                self._remember_turn(who, input, whole)
            yield chunk

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        config = ensure_config(config)
        who, kwargs = await in_thread(self._serve, config, kwargs)
        whole: AIMessageChunk | None = None
        async for chunk in super().astream(input, config, stop=stop, **kwargs):
            whole = chunk if whole is None else whole + chunk
            if chunk.chunk_position == "last":
                await in_thread(self._remember_turn, who, input, whole)
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

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools.

        Args:
            tool_choice: "auto", "none", "any" (also "required", True): some tool is called; a name: that one is.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        choice = choice_of(tool_choice)
        forced_names(schemas, choice)
        return self.bind(tools=schemas, tool_choice=choice, **kwargs)

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
        request = self._request(messages, stop, kwargs)
        state, metadata = self._recall(kwargs)
        with overflow():
            chunks = self.engine.stream_request(request, state)
        with closing(chunks):
            for chunk in chunks:
                if chunk.generation is None:
                    yield ChatGenerationChunk(message=AIMessageChunk(content=chunk.text))
                else:
                    last = to_last_chunk(chunk.text, chunk.generation, metadata)
                    yield ChatGenerationChunk(message=last)

    def _answer(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any], cancel: Event | None
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        state, metadata = self._recall(kwargs)
        with overflow():
            (generation,) = self.engine.scheduler.generate([request], [state], cancel)
        return ChatResult(generations=[ChatGeneration(message=to_reply(generation, metadata))])

    def _request(self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Request:
        tools = [convert_to_openai_tool(tool) for tool in kwargs.get("tools") or ()]
        return Request(
            conversation=[to_message(message) for message in messages],
            tools=tools or None,
            max_new_tokens=kwargs.get("max_tokens") or self.max_tokens,
            stop=_texts(stop if stop is not None else self.stop),
            temperature=kwargs.get("temperature", self.temperature) or 0.0,
            top_p=kwargs.get("top_p", self.top_p),
            seed=kwargs.get("seed", self.seed),
            tool_choice=choice_of(kwargs.get("tool_choice")),
        )

    def _recall(self, kwargs: dict[str, Any]) -> tuple[MemoryState | None, dict[str, Any]]:
        """The state to read, and what the answer's metadata say of it."""
        metadata = {"model_name": self.adapter, "model_provider": "deltamem"}
        if not self.memory:
            return None, metadata
        agent_id = require_agent(kwargs.get("agent_id"), self.agent_id)
        if "memory_version" in kwargs:
            version = kwargs["memory_version"]
        else:
            version = self.memory_version or self.opened_store.head(agent_id)
        return self.memories.load(agent_id, version), metadata | {"memory_version": version}

    def _serve(self, config: RunnableConfig, kwargs: dict[str, Any]) -> tuple[Served | None, dict[str, Any]]:
        """Who is served, and the call's arguments with agent id and memory version: so caches and traces see them."""
        if kwargs.get("model") not in (None, self.adapter):
            raise ValueError(
                f"model={kwargs['model']!r}: this chat model is {self.adapter!r}, and a memory belongs to one adapter; "
                f"make another DeltaMemChatModel(adapter={kwargs['model']!r})"
            )
        if not self.memory:
            return None, {key: kwargs[key] for key in kwargs if key not in ("agent_id", "memory_version")}
        who = served(config, kwargs, self.agent_id, self.memory_version)
        version = who.pinned or self.opened_store.head(who.agent_id)
        return who, {**kwargs, "agent_id": who.agent_id, "memory_version": version}

    def _remember_turn(self, who: Served | None, input: LanguageModelInput, reply: AIMessage) -> None:
        if who is None or who.pinned is not None:
            return
        if self.remembers is False or (self.remembers is None and who.in_graph):
            return
        messages = self._convert_input(input).to_messages()
        turn = [*last_turn(messages), reply]
        self.remember(turn, who.agent_id, thread_id=who.thread_id, run_id=who.run_id)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of LangChain's caches: an answer depends on whose memory was read, and on its version."""
        key = super()._get_llm_string(stop=stop, **kwargs)
        if not self.memory:
            return key
        agent_id = require_agent(kwargs.get("agent_id"), self.agent_id)
        version = kwargs.get("memory_version", self.memory_version) or self.opened_store.head(agent_id)
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
        names = ("adapter", "backbone", "dtype", "temperature", "max_tokens", "top_p", "stop", "seed", "memory")
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "deltamem"
        params["ls_model_name"] = kwargs.get("model") or self.adapter
        return params


def _texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
