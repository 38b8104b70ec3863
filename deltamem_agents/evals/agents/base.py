"""What all agents share: an engine, the way to its answers, and a description of how they were set up."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine import Engine, Generation, Request
from ...memory import MemoryState
from ..contract import Agent, Answer, Message

ROWS = 64  # questions answered at once, at the most
PROMPT_TOKENS = 65_536  # of the prompts answered at once, padded, at the most; a longer prompt is alone


@dataclass(frozen=True)
class Prompt:
    """Token ids of what is asked; ``cut_tokens`` as in :class:`Answer`."""

    ids: list[int]
    cut_tokens: int = 0


class EngineAgent(Agent):
    """An agent that answers with an engine's backbone, greedily.

    Attributes:
        engine: may be shared: an agent changes nothing in it.
        config: all that decides about the answers, as JSON can hold it; results are resumed by it.
    """

    def __init__(self, engine: Engine, name: str, template_options: Mapping[str, Any] | None = None) -> None:
        """``template_options``: further variables for the chat template, such as ``enable_thinking``."""
        self.engine, self.name = engine, name
        self.template_options = dict(template_options) if template_options else None
        self.config: dict[str, Any] = {
            "agent": type(self).__name__,
            "engine": engine.fingerprint,
            "dtype": str(engine.model.dtype),
            "window": engine.max_length,
            "template_options": self.template_options,
        }

    def ask(self, questions: Sequence[str], max_tokens: int) -> list[Answer]:
        """See :meth:`Agent.ask`.

        Raises:
            ContextOverflow: a question alone does not fit into the context window.
        """
        prompts = [self._prompt(question, max_tokens) for question in questions]
        answers: dict[int, Answer] = {}
        for group in batches([len(p.ids) + max_tokens for p in prompts]):
            said = self._generate([prompts[i].ids for i in group], max_tokens)
            for i, g in zip(group, said, strict=True):
                answers[i] = Answer(g.text.strip(), g.prompt_tokens, g.completion_tokens, prompts[i].cut_tokens)
        return [answers[i] for i in range(len(questions))]

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of messages, each rendered alone."""
        return sum(len(self.engine.text.message(bare(message))) for message in messages)

    @abstractmethod
    def _prompt(self, question: str, max_tokens: int) -> Prompt: ...

    def _state(self) -> MemoryState | None:
        """The memory, one row, that is read while answering."""
        return None

    def _generate(self, prompts: Sequence[list[int]], max_tokens: int) -> list[Generation]:
        state = self._state()
        requests = [
            Request(ids=ids, max_new_tokens=max_tokens, template_options=self.template_options) for ids in prompts
        ]
        return self.engine.generate_requests(requests, None if state is None else state.repeat(len(prompts)))

    def _ids(self, conversation: Sequence[Message]) -> list[int]:
        return self.engine.text.prompt([bare(m) for m in conversation], None, self.template_options)


class NoMemory(EngineAgent):
    """The backbone alone, with the question alone in its prompt."""

    def __init__(
        self, engine: Engine, name: str = "no memory", *, template_options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(engine, name, template_options)

    def forget(self) -> None:
        """Nothing was kept."""

    def tell(self, messages: Sequence[Message]) -> None:
        """Keep nothing."""

    @property
    def state_bytes(self) -> int:
        """0."""
        return 0

    def _prompt(self, question: str, max_tokens: int) -> Prompt:
        return Prompt(self._ids([asking(question)]))


def asking(question: str) -> Message:
    """The user message that asks."""
    return {"role": "user", "content": question}


def bare(message: Message) -> Message:
    """The message as a chat template takes it: without the sub-state that a benchmark has noted."""
    return {key: value for key, value in message.items() if key != "sub_state"}


def text_bytes(messages: Sequence[Message]) -> int:
    """UTF-8 bytes of the messages' contents and of the arguments and names of their tool calls."""
    return sum(len(text_of(message).encode()) for message in messages)


def text_of(message: Message) -> str:
    """The content, and below it each tool call as ``name(arguments)``."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    return "\n".join(filter(None, [message.get("content"), *(f"{c['name']}({c['arguments']})" for c in calls)]))


def batches(lengths: Sequence[int], rows: int = ROWS, tokens: int = PROMPT_TOKENS) -> Iterator[list[int]]:
    """Indices of ``lengths`` in groups of at most ``rows`` whose padded size is at most ``tokens``, if not alone."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) == rows or lengths[i] * (len(group) + 1) > tokens):
            yield group
            group = []
        group.append(i)
    if group:
        yield group
