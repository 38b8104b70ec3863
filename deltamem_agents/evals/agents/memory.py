"""Agents with δ-mem: what was told is in a state, the prompt has the question alone, or passages of text before it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...engine import Engine
from ...memory import MemoryState
from ..contract import Message
from .base import EngineAgent, Prompt, asking, bare
from .retrieval import BM25, Form


class DeltaMem(EngineAgent):
    """Each message is written into the state of the engine's adapter, one after the other; the answer reads it.

    The adapter decides how that is done: token by token (TSW), by the mean of a segment (SSW) or in several
    sub-states (MSW).
    """

    def __init__(
        self,
        engine: Engine,
        name: str = "δ-mem",
        *,
        routed: bool = True,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """``routed``: a message goes to the sub-state that it names, or else by role; False: to all sub-states.

        Without a sub-state of the name given, the adapter's :meth:`Engine.route` decides as well.
        """
        super().__init__(engine, name, template_options)
        self.routed = routed
        self.config["routed"] = routed
        self.state = engine.new_state()

    def forget(self) -> None:
        """Begin with an empty state."""
        self.state = self.engine.new_state()

    def tell(self, messages: Sequence[Message]) -> None:
        """Write the messages."""
        routes = [self._route(message) for message in messages]
        self.state = self.engine.write_batch(self.state, [[bare(m) for m in messages]], [routes])

    @property
    def state_bytes(self) -> int:
        """Bytes of the state's tensors, float32; they do not grow."""
        return state_bytes(self.state)

    def _state(self) -> MemoryState | None:
        return self.state

    def _prompt(self, question: str, max_tokens: int) -> Prompt:
        return Prompt(self._ids([asking(question)]))

    def _route(self, message: Message) -> tuple[str, ...]:
        if not self.routed:
            return self.engine.sub_states
        given = message.get("sub_state")
        return (given,) if given in self.engine.sub_states else self.engine.route(message)


class DeltaMemBM25(DeltaMem):
    """δ-mem, and beside it what :class:`BM25` shows in the prompt."""

    def __init__(
        self,
        engine: Engine,
        name: str = "δ-mem + BM25",
        *,
        k: int = 5,
        tokens: int = 512,
        form: Form = "quotes",
        routed: bool = True,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """``k``, ``tokens``, ``form`` as for :class:`BM25`, ``routed`` as for :class:`DeltaMem`."""
        super().__init__(engine, name, routed=routed, template_options=template_options)
        self.journal = BM25(engine, k=k, tokens=tokens, form=form, template_options=template_options)
        self.config |= {"k": k, "tokens": tokens, "form": form}

    def forget(self) -> None:
        """Begin with an empty state and no text."""
        super().forget()
        self.journal.forget()

    def tell(self, messages: Sequence[Message]) -> None:
        """Write the messages, and keep them."""
        super().tell(messages)
        self.journal.tell(messages)

    @property
    def state_bytes(self) -> int:
        """Bytes of the state's tensors and of the text kept."""
        return super().state_bytes + self.journal.state_bytes

    def _prompt(self, question: str, max_tokens: int) -> Prompt:
        return self.journal._prompt(question, max_tokens)


def state_bytes(state: MemoryState) -> int:
    """Bytes of a state's tensors."""
    return sum(t.numel() * t.element_size() for t in state.tensors.values())
