"""The agent that MemoryAgentBench's own harness talks to: a chat model with a memory, behind the harness' interface.

The harness (https://github.com/HUST-AI-HYZ/MemoryAgentBench) makes an ``AgentWrapper`` for each context, tells it the
chunks, has it saved, and asks the queries. harness.py puts the class below in the place of the harness' own.
"""

import importlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import DEFAULT_ADAPTER
from ..errors import ContextOverflow, DeltaMemError, FingerprintMismatch

if TYPE_CHECKING:
    from ..chat_model import DeltaMemChatModel
    from ..store import Store

KIND = "Agentic_memory"
"""What an agent's name has to contain, for the harness to know which of its templates are meant."""

OTHER_KINDS = ("mem0", "letta", "cognee", "zep", "rag", "Long_context_agent", "HF_local", "SHINE")
"""Parts of names by which the harness knows agents of its own."""

NEEDED = ("agent_name", "model", "input_length_limit", "buffer_length", "output_dir")
MODEL_OPTIONS = (
    "adapter revision backbone backbone_revision device dtype decode attn_implementation model_options "
    "recall recall_tokens memory_scale thinking top_p seed"
).split()
"""Keys of ``deltamem:`` that are fields of DeltaMemChatModel."""
OPTIONS = (*MODEL_OPTIONS, "sub_states", "time_stamp")

TIME_STAMP = "2025-01-01 00:00:00"
"""Stands in the harness' templates where it would write the time of the run, so that a memory can be made again."""

CONTENT = ("dataset", "sub_dataset", "chunk_size", "context_max_length", "shots", "seed")
"""Keys of the dataset's configuration that decide what an agent is told."""

RECORD, STORE, PARTIAL = "deltamem.json", "memory.db", ".partial"


@dataclass(frozen=True)
class AgentOptions:
    """What an agent's configuration says.

    Attributes:
        model: fields of DeltaMemChatModel.
        sub_states: where chunks are written; None: by role (what people say goes to ``facts``).
        time_stamp: stands in the harness' templates for the time; "now": the clock's.
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    sub_states: tuple[str, ...] | None = None
    time_stamp: str = TIME_STAMP
    temperature: Any = 0.0

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "AgentOptions":
        """Check a configuration (the harness' keys, and ours under ``deltamem``).

        Raises:
            DeltaMemError: a key is missing, unknown or has no fitting value; or the harness would take the agent's
                name for one of its own agents.
        """
        if missing := [key for key in NEEDED if key not in config]:
            raise DeltaMemError(f"agent config: the key {missing[0]!r} is missing; the harness needs {list(NEEDED)}")
        name = str(config["agent_name"])
        if KIND not in name:
            raise DeltaMemError(
                f"agent config: agent_name {name!r} must contain {KIND!r}: the harness' templates go by it"
            )
        if taken := [kind for kind in OTHER_KINDS if kind in name]:
            raise DeltaMemError(
                f"agent config: agent_name {name!r} contains {taken[0]!r}, which the harness takes for an agent of its "
                "own: give another name"
            )
        if config.get("agent_chunk_size") is not None:
            raise DeltaMemError(
                "agent config: remove agent_chunk_size: chunks are as long as the dataset's config says"
            )
        own = config.get("deltamem") or {}
        if not isinstance(own, Mapping):
            raise DeltaMemError(f"agent config: deltamem must be a mapping of options, got {own!r}")
        if unknown := [key for key in own if key not in OPTIONS]:
            raise DeltaMemError(f"agent config: unknown key {unknown[0]!r} under deltamem; known are {list(OPTIONS)}")
        stamp = own.get("time_stamp", TIME_STAMP)
        if not isinstance(stamp, str):
            raise DeltaMemError(f"agent config: time_stamp must be text, in quotes, or now; got {stamp!r}")
        routes = own.get("sub_states")
        if not isinstance(routes, str | list | None):
            raise DeltaMemError(f"agent config: sub_states must be a name or a list of names, got {routes!r}")
        names = (routes,) if isinstance(routes, str) else None if routes is None else tuple(routes)
        fields = {key: own[key] for key in MODEL_OPTIONS if own.get(key) is not None}
        return cls(name, fields, names, stamp, config.get("temperature", 0.0))

    def chat_model(self, store: Path, agent_id: str, max_tokens: int) -> "DeltaMemChatModel":
        """A model over one store that only reads when it is asked. Raises DeltaMemError: an option's value is wrong."""
        from ..chat_model import DeltaMemChatModel

        fixed = {"store": str(store), "agent_id": agent_id, "max_tokens": max_tokens, "temperature": self.temperature}
        try:
            return DeltaMemChatModel(**{**self.model, **fixed}, remember=False)
        except ValueError as error:  # pydantic's
            raise DeltaMemError(f"agent config of {self.name}: {error}") from error


class AgentWrapper:
    """One context's agent, as the harness' main.py and initialization.py use it.

    Chunks are written one by one into a store beside the folder (``<folder>.partial``); ``save_agent`` makes that the
    folder in one step. The harness takes a folder that exists for a finished agent, so one that was killed meanwhile
    begins anew. Queries read the memory and write nothing, so their order changes nothing. The configuration's
    ``input_length_limit`` and ``buffer_length`` are not used: the backbone's window is what limits a query, and a query
    that does not fit raises ContextOverflow, since a shortened one would be another query.

    Args:
        agent_config: see :meth:`AgentOptions.read`.
        dataset_config: of it, what CONTENT names, and ``generation_max_length``: tokens of an answer at most.
        load_agent_from: the agent's folder; its name tells one context from another.
    """

    def __init__(
        self, agent_config: Mapping[str, Any], dataset_config: Mapping[str, Any], load_agent_from: str | Path
    ) -> None:
        self.options = AgentOptions.read(agent_config)
        self.dataset = {key: dataset_config.get(key) for key in CONTENT}
        self.folder = Path(load_agent_from).absolute()  # the harness names it from its own folder
        self.partial = self.folder.with_name(self.folder.name + PARTIAL)
        self.agent_id = f"{dataset_config['sub_dataset']}/{self.folder.name}"
        self.max_tokens = int(dataset_config["generation_max_length"])
        self.chunks, self.seconds, self.untold = 0, 0.0, 0.0
        self.saved = False
        self.store: Store | None = None  # while chunks are written
        self.model = self.options.chat_model(self.folder / STORE, self.agent_id, self.max_tokens)
        self.fingerprint = self.model.engine.fingerprint  # loads the model: no part of any time that is reported

    def send_message(
        self, message: str, memorizing: bool = False, query_id: int | None = None, context_id: int | None = None
    ) -> str | dict[str, Any]:
        """Remember a chunk, or answer a query, which comes with the harness' template around it.

        Returns:
            Of a query: ``output``; ``input_len`` and ``output_len``, in tokens of the backbone;
            ``query_time_len``, in seconds; ``memory_construction_time``: seconds spent on writing since the last query.

        Raises:
            ContextOverflow: a query does not fit into the backbone's window.
        """
        if memorizing:
            self._remember(message)
            return "Memorized"
        return self._answer(message, query_id, context_id)

    def save_agent(self) -> None:
        """Make what was remembered the folder of a finished agent."""
        self._begun().close()
        (self.partial / RECORD).write_text(json.dumps(self._record(), indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.rename(self.partial, self.folder)
        self.store, self.saved = None, True

    def load_agent(self) -> None:
        """Take up a finished agent.

        Raises:
            FingerprintMismatch: another adapter or backbone made it.
            DeltaMemError: it was told something else (another chunk size, say), or is no folder of ours.
        """
        remedy = f"remove {self.folder}, or give this agent another agent_name"
        try:
            found = json.loads((self.folder / RECORD).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DeltaMemError(f"{self.folder} holds no agent of deltamem-agents ({error}): {remedy}") from error
        wanted = self._record()
        if found.get("fingerprint") != self.fingerprint:
            raise FingerprintMismatch(f"{self.folder} was made by {_maker(found)}, this is {_maker(wanted)}: {remedy}")
        for key in ("told", "sub_states", "time_stamp"):
            if found.get(key) != wanted[key]:
                raise DeltaMemError(f"{self.folder} was made with {key} {found.get(key)}, not {wanted[key]}: {remedy}")
        self.saved = True

    def _record(self) -> dict[str, Any]:
        routes, model = self.options.sub_states, self.options.model
        return {
            "adapter": str(model.get("adapter", DEFAULT_ADAPTER)),
            "backbone": model.get("backbone", "its own"),
            "fingerprint": self.fingerprint,
            "agent_id": self.agent_id,
            "told": self.dataset,
            "sub_states": None if routes is None else list(routes),
            "time_stamp": self.options.time_stamp,
            "chunks": self.chunks,
            "memory_construction_time": self.seconds,
        }

    def _begun(self) -> "Store":
        """The store of what is remembered, in a folder that is empty before the first chunk."""
        from ..store import open_store

        if self.saved:
            raise DeltaMemError(f"agent {self.agent_id!r} was saved or loaded: tell a new AgentWrapper")
        if self.store is None:
            if self.partial.exists():
                shutil.rmtree(self.partial)
            self.store = open_store(self.partial / STORE)
        return self.store

    def _template(self, name: str) -> str:
        templates = importlib.import_module("utils.templates")  # the harness': harness.py put its folder on sys.path
        return str(templates.get_template(self.dataset["sub_dataset"], name, self.options.name))

    def _remember(self, chunk: str) -> None:
        from langchain_core.messages import HumanMessage

        from ..chat_model.memory import AgentMemory

        memory = AgentMemory(self.model.engine, self._begun())
        stamp, routes = self.options.time_stamp, self.options.sub_states
        told = time.strftime("%Y-%m-%d %H:%M:%S") if stamp == "now" else stamp
        text = self._template("memorize").format(context=chunk, time_stamp=told)
        message = HumanMessage(text, additional_kwargs={} if routes is None else {"sub_state": routes})
        started = time.perf_counter()
        memory.remember([message], self.agent_id)
        spent = time.perf_counter() - started
        self.chunks, self.seconds, self.untold = self.chunks + 1, self.seconds + spent, self.untold + spent

    def _answer(self, query: str, query_id: int | None, context_id: int | None) -> dict[str, Any]:
        from langchain_core.messages import HumanMessage, SystemMessage

        if not self.saved:
            raise DeltaMemError(
                f"agent {self.agent_id!r} has nothing to answer from: call save_agent or load_agent first"
            )
        messages = [SystemMessage(self._template("system")), HumanMessage(query)]
        started = time.perf_counter()
        try:
            reply = self.model.invoke(messages)
        except ContextOverflow as error:
            raise ContextOverflow(f"query {query_id} of context {context_id}: {error}") from error
        seconds = time.perf_counter() - started
        usage = reply.usage_metadata
        if usage is None:
            raise DeltaMemError(f"query {query_id} of context {context_id}: the reply has no token counts")
        untold, self.untold = self.untold, 0.0
        return {
            "output": reply.text,
            "input_len": usage["input_tokens"],
            "output_len": usage["output_tokens"],
            "memory_construction_time": untold,
            "query_time_len": seconds,
        }


def _maker(record: Mapping[str, Any]) -> str:
    """What made an agent, in words."""
    return f"adapter {record.get('adapter')} on backbone {record.get('backbone')} ({record.get('fingerprint')})"
