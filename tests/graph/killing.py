"""An agent that calls two tools, its turns in processes that can be killed, and what is in its memory afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph.state import CompiledStateGraph
from warm import context

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.chat_model.replay import replay
from deltamem_agents.graph import create_deltamem_agent

AGENT, TEXT = "otto", "look rice and tank up"
PATIENCE = 60.0  # seconds

Compiled = CompiledStateGraph[Any, Any, Any, Any]
Make = Callable[[Any], Compiled]


def look_up(item: str) -> str:
    """Look an item up."""
    return f"{item} is in room seven"


class Calling(DeltaMemChatModel):
    """Asks for two tools at once after a human message, and answers by itself after that."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        if (calls := _calls(messages)) is None:
            return super()._generate(messages, *args, **kwargs)
        return ChatResult(generations=[ChatGeneration(message=calls)])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        if (calls := _calls(messages)) is None:
            return await super()._agenerate(messages, *args, **kwargs)
        return ChatResult(generations=[ChatGeneration(message=calls)])

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        if (calls := _calls(messages)) is None:
            yield from super()._stream(messages, *args, **kwargs)
        else:
            yield ChatGenerationChunk(message=_chunk(calls))

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        if (calls := _calls(messages)) is None:
            async for chunk in super()._astream(messages, *args, **kwargs):
                yield chunk
        else:
            yield ChatGenerationChunk(message=_chunk(calls))


def _calls(messages: Sequence[BaseMessage]) -> AIMessage | None:
    if not isinstance(messages[-1], HumanMessage):
        return None
    calls = [{"name": "look_up", "args": {"item": item}, "id": f"{item}-{len(messages)}"} for item in ("rice", "tank")]
    identity = None if messages[-1].id is None else f"calls for {messages[-1].id}"  # the same again, as the model's own
    return AIMessage("", tool_calls=calls, id=identity)  # type: ignore[arg-type]


def _chunk(message: AIMessage) -> AIMessageChunk:
    return AIMessageChunk("", tool_calls=message.tool_calls, id=message.id, chunk_position="last")


def calling(adapter: object, folder: Path) -> Calling:
    return Calling(adapter=str(adapter), device="cpu", store=str(folder / "memory.db"), max_tokens=4)


def agent_of(model: DeltaMemChatModel, saver: Any) -> Compiled:
    return create_deltamem_agent(model, [look_up], checkpointer=saver)


def config(thread: str = "1", **more: Any) -> Any:
    return {"configurable": {"agent_id": AGENT, "thread_id": thread} | more}


def said(text: str) -> Any:
    """The input of a turn; its id is its text, so that one that is sent again is the same message."""
    return {"messages": [HumanMessage(text, id=text)]}


def call(make: Make, folder: Path, start: Any, config: Any, asynchronous: bool, **options: Any) -> Any:
    """Invoke the graph that ``make`` makes, with a checkpointer that is opened for this call."""
    path = str(folder / "threads.db")
    if not asynchronous:
        with SqliteSaver.from_conn_string(path) as saver:
            return make(saver).invoke(start, config, **options)

    async def run() -> Any:
        async with AsyncSqliteSaver.from_conn_string(path) as saver:
            return await make(saver).ainvoke(start, config, **options)

    return asyncio.run(run())


@dataclass(frozen=True)
class Memory:
    """What an agent remembers: every tensor, and who said what to which sub-states, oldest first."""

    tensors: dict[str, torch.Tensor]
    journal: list[tuple[str, str | None, tuple[str, ...]]]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Memory)
            and self.journal == other.journal
            and self.tensors.keys() == other.tensors.keys()
            and all(torch.equal(tensor, other.tensors[name]) for name, tensor in self.tensors.items())
        )


def memory(model: DeltaMemChatModel, version: str | None = None) -> Memory:
    """What ``AGENT`` remembers at a version (None: the head). No message may be there twice."""
    records = model.opened_store.journal(AGENT, version)
    ids = [record.entry.message_id for record in records]
    assert None not in ids and len(set(ids)) == len(ids), ids
    journal = [(r.entry.role, r.entry.content, tuple(r.entry.sub_states)) for r in records]
    return Memory(dict(model.load_state(AGENT, version).tensors), journal)


def lines(model: DeltaMemChatModel) -> list[Memory]:
    """What ``AGENT`` remembers on each line of versions; written again, each of them must be the same, bit for bit."""
    assert list(replay(model.memories, AGENT)) == []
    versions = model.opened_store.tree(AGENT)
    parents = {version.parent for version in versions}
    return [memory(model, v.version_id) for v in versions if v.version_id not in parents]


def undisturbed(adapter: object, folder: Path, *texts: str) -> Memory:
    """What is remembered of these turns when nothing happens to them."""
    folder.mkdir()
    model = calling(adapter, folder)
    for text in texts:
        call(partial(agent_of, model), folder, said(text), config(), False)
    return memory(model)


@dataclass(frozen=True)
class Turn:
    """A turn of a thread, to be begun, or gone on with from where the thread's last checkpoint left it."""

    adapter: str
    folder: Path
    text: str = TEXT
    thread: str = "1"
    durability: Literal["sync", "async", "exit"] = "sync"
    asynchronous: bool = False
    resumes: bool = True  # else the text is said whatever the thread is doing

    def take(self) -> None:
        model = calling(self.adapter, self.folder)
        path, where = str(self.folder / "threads.db"), config(self.thread)
        if not self.asynchronous:
            with SqliteSaver.from_conn_string(path) as saver:
                agent = agent_of(model, saver)
                if (start := self._start(agent.get_state(where))) is not False:
                    agent.invoke(start, where, durability=self.durability)
            return

        async def run() -> None:
            async with AsyncSqliteSaver.from_conn_string(path) as saver:
                agent = agent_of(model, saver)
                if (start := self._start(await agent.aget_state(where))) is not False:
                    await agent.ainvoke(start, where, durability=self.durability)

        asyncio.run(run())

    def _start(self, state: Any) -> Any:
        """What the graph is invoked with: None: go on; False: the turn was finished."""
        if not self.resumes:
            return said(self.text)
        if state.tasks:  # and not state.next, which leaves out a task whose result is kept already
            return None
        finished = any(message.id == self.text for message in state.values.get("messages", ()))
        return False if finished else said(self.text)


class Worker:
    """A process that has loaded all it needs, and takes its turn when it is told to go."""

    def __init__(self, turn: Turn) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(turn, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.poll(PATIENCE), "the worker did not start"
        self._pipe.recv()

    def go(self) -> None:
        self._pipe.send("go")

    def kill(self, after: float) -> bool:
        """SIGKILL it some seconds after it went; returns whether its turn was still going on."""
        finished = self._pipe.poll(after)
        self._process.kill()
        self._process.join(PATIENCE)
        self._pipe.close()
        return not finished

    def finish(self) -> float:
        """Wait for the end of its turn; returns how many seconds that took."""
        assert self._pipe.poll(PATIENCE), "the worker does not come to an end"
        seconds = self._pipe.recv()
        self._process.join(PATIENCE)
        self._pipe.close()
        return seconds


def _work(turn: Turn, pipe: Connection) -> None:
    torch.set_num_threads(1)
    model = calling(turn.adapter, turn.folder)
    assert model.engine and model.opened_store
    with closing(pipe):
        pipe.send("ready")
        pipe.recv()
        start = time.monotonic()
        turn.take()
        pipe.send(time.monotonic() - start)


def at_once(*turns: Turn) -> None:
    """Take turns at the same time, each in its process."""
    workers = [Worker(turn) for turn in turns]
    for worker in workers:
        worker.go()
    for worker in workers:
        worker.finish()
