"""What a DeltaMemChatModel is made with, and what it finds by that: the engine, the store, the memories in it."""

from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic import ConfigDict, Field, SkipValidation, field_validator

from ..config import DEFAULT_ADAPTER
from ..engine import Engine, load_engine
from ..store import DEFAULT_TENANT, Store
from .history import Policy, check_policy
from .memory import AgentMemory, shared_store
from .routing import Router


class Settings(BaseChatModel):
    """The fields of a chat model with a memory; nothing is loaded or opened before it is used."""

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
    use_memory: bool = True
    """False: the frozen backbone alone, which needs no agent and remembers nothing. Also with a call, to compare."""
    memory_scale: float = Field(default=1.0, ge=0.0)
    """By how much what is read from memory counts. Also with a call."""
    memory_version: str | None = None
    history: Policy | None = None
    """What the model sees of the messages that it is given: "turn" (the last human message and what followed it: the
    default), a number of messages, {"tokens": n}, or "all" (the default without memory). Also with a call."""
    recall: int = Field(default=0, ge=0)
    """How many entries of the agent's journal are quoted in the prompt, found by the words of the last human message
    (BM25). Also with a call."""
    recall_tokens: int = Field(default=512, ge=1)
    """At most this many tokens of quotations."""
    router: SkipValidation[Router | None] = Field(default=None, exclude=True)
    """Names the sub-state (or several, or none) that a message is written to; None or its None: by role."""
    trace_quotes: bool = False
    """True: traces and DEBUG logs hold the quotations, as ``response_metadata["recalled_text"]``. Also with a call."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which a reply that is not whole is ended, with a TimeoutError. Also with a call."""
    thinking: bool | None = None
    """For templates that know ``enable_thinking``. Also with a call."""
    revision: str | None = None
    """Branch, tag or commit of an adapter on the hub."""
    backbone_revision: str | None = None
    attn_implementation: str | None = None
    model_options: dict[str, Any] | None = None
    """What else goes to transformers' ``from_pretrained``: ``quantization_config``, ``device_map``, …"""

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """``dumps`` and ``loads`` of langchain_core take the settings, never weights or memories."""
        return True

    @field_validator("adapter", "backbone", "store", "dtype", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, str) else str(value).removeprefix("torch.")

    @field_validator("model_options", mode="after")
    @classmethod
    def _as_plain(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """Configs of transformers as dicts, which ``from_pretrained`` takes too, and ``dumps`` keeps."""
        if value is None:
            return None
        return {name: one.to_dict() if callable(getattr(one, "to_dict", None)) else one for name, one in value.items()}

    # What is shared by all models of the process

    @property
    def engine(self) -> Engine:
        """The loaded backbone and adapter; loaded at the first use."""
        return load_engine(
            self.adapter,
            backbone=self.backbone,
            dtype=self.dtype,
            device=self.device,
            revision=self.revision,
            decode=self.decode,
            backbone_revision=self.backbone_revision,
            attn_implementation=self.attn_implementation,
            model_options=self.model_options,
        )

    @property
    def memories(self) -> AgentMemory:
        """The agents' memories in the store, for this engine."""
        return AgentMemory(self.engine, self.opened_store)

    @property
    def opened_store(self) -> Store:
        """The store; opened at the first use."""
        return shared_store(self.store, self.tenant)

    @property
    def _settings(self) -> dict[str, Any]:
        """The fields that a call may override by an argument of the same name."""
        names = ("max_tokens", "stop", "temperature", "top_p", "seed", "thinking")
        return {name: getattr(self, name) for name in names}

    def _policy(self, kwargs: Mapping[str, Any]) -> Policy:
        chosen: Policy | None = kwargs.get("history", self.history)
        if chosen is not None:
            return check_policy(chosen)
        return "turn" if kwargs.get("use_memory", self.use_memory) else "all"
