"""What every evaluation is made of: examples that are told once and asked many times, agents, and their answers.

A benchmark (world_mab.py, mab.py, locomo.py) yields examples and scores answers; an agent (agents/) is told what is in
an example and answers its questions; runner.py brings the two together and keeps what came out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Message = dict[str, Any]
"""{"role", "content"}, of text; "sub_state" where the benchmark knows what a message is about."""

Scores = dict[str, float]
"""Name of a metric -> 0 to 1."""


@dataclass(frozen=True)
class Question:
    """One question, asked after everything was told.

    Attributes:
        id: unique within its benchmark; results are resumed by it.
        text: the user message that asks.
        answers: each of them is right; what "right" is says the benchmark's ``score``.
        group: what is reported apart: a question type, a category.
        metadata: whatever else scoring needs.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    group: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """What is told, in order, and what is asked of it. ``max_tokens``: longest answer, in tokens."""

    id: str
    messages: tuple[Message, ...]
    questions: tuple[Question, ...]
    source: str = ""
    competency: str = ""
    max_tokens: int = 32


class Benchmark(ABC):
    """Examples, and how answers to them are scored.

    Attributes:
        name: as it stands in reports.
        scoring: what decides about scores and is no part of an example, as JSON can hold it; results are resumed by it.
    """

    name: str
    scoring: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """All examples, the same in every run."""

    @abstractmethod
    def score(self, example: Example, question: Question, answer: str) -> Scores:
        """The metrics of one answer, each between 0 and 1."""

    @abstractmethod
    def headline(self, example: Example) -> str:
        """Which of the metrics of :meth:`score` counts for this example."""


@dataclass(frozen=True)
class Answer:
    """What an agent said.

    Attributes:
        prompt_tokens: length of the prompt.
        cut_tokens: tokens of what was told that the agent meant to show and that did not fit into the window.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut_tokens: int = 0


class Agent(ABC):
    """Is told messages and answers questions. A question is not remembered: the order of questions changes nothing.

    Attributes:
        name: as it stands in reports.
    """

    name: str

    @abstractmethod
    def forget(self) -> None:
        """Become a new agent that was told nothing."""

    @abstractmethod
    def tell(self, messages: Sequence[Message]) -> None:
        """Take messages in, after those told before."""

    @abstractmethod
    def ask(self, questions: Sequence[str], max_tokens: int) -> list[Answer]:
        """Answer each question by itself, greedily, in at most ``max_tokens`` tokens. Many at once are a batch."""

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes that are kept of what was told: a state, or text, or vectors."""
