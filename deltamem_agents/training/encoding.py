"""Messages to token ids: each memory message alone, each conversation with the place where its answer begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from .records import Conversation, Record


@dataclass(frozen=True)
class EncodedRecord:
    """Token ids of one record.

    Attributes:
        memory: ids of each message, rendered alone by the chat template.
        routes: sub-states that each message is written to.
        asked: (ids, index where the answer begins) of each conversation.
        reset: sub-states emptied after writing.
    """

    memory: list[list[int]]
    routes: list[tuple[str, ...]]
    asked: list[tuple[list[int], int]]
    reset: tuple[str, ...]


class Encoder:
    """Encodes records with one tokenizer and its chat template.

    A message without ``sub_state`` is written to every sub-state, as is any message when the adapter has only one (the
    published adapters).
    """

    def __init__(self, tokenizer: Any, sub_states: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.sub_states = tuple(sub_states)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def record(self, record: Record) -> EncodedRecord:
        """Raises RecipeError for a sub-state that the adapter has not."""
        self._check(record.reset)
        memory = self.texts([self.render([m]) for m in record.memory])
        prompts, answers = [], []
        for conversation in record.conversations:
            prompt, answer = self.split(conversation)
            prompts.append(prompt)
            answers.append(answer)
        encoded = self.texts(prompts + answers)
        asked = [(p + a, len(p)) for p, a in zip(encoded[: len(prompts)], encoded[len(prompts) :], strict=True)]
        return EncodedRecord(memory, [self.route(m) for m in record.memory], asked, record.reset)

    def texts(self, texts: list[str]) -> list[list[int]]:
        """Ids of rendered texts; control tokens in them are control tokens."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def render(self, messages: list[dict[str, Any]], tools: Any = None, prompt: bool = False) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=prompt
        )
        return text

    def split(self, conversation: Conversation) -> tuple[str, str]:
        """The prompt of a conversation and the answer with its end-of-turn token."""
        prompt = self.render(conversation.messages[:-1], conversation.tools, prompt=True)
        whole = self.render(conversation.messages, conversation.tools)
        answer = whole[len(prompt) :] if whole.startswith(prompt) else None
        if answer is None:  # templates that change what came before (thinking blocks): the plain answer and end of turn
            answer = str(conversation.messages[-1]["content"]) + (self.tokenizer.eos_token or "")
        return prompt, answer.rstrip("\n")

    def route(self, message: dict[str, Any]) -> tuple[str, ...]:
        """The sub-states that a memory message is written to."""
        named = message.get("sub_state")
        if named is None or len(self.sub_states) == 1:
            return self.sub_states
        names = (named,) if isinstance(named, str) else tuple(named)
        self._check(names)
        return names

    def _check(self, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self.sub_states]:
            raise RecipeError(f"no sub-state {unknown[0]!r} in the adapter; it has {sorted(self.sub_states)}")
