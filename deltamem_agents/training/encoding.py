"""Messages to token ids: each memory message alone, each conversation with the place where its answer begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..content import Contents, normal_form, one_system
from ..errors import RecipeError
from .records import Conversation, Record


@dataclass(frozen=True)
class EncodedRecord:
    """Token ids of one record.

    Attributes:
        memory: ids of each message, rendered alone by the chat template.
        routes: sub-states that each message is written to.
        asked: (ids, index where that begins which is to be learnt, at least 1) of each conversation.
        reset: sub-states emptied after writing.
    """

    memory: list[list[int]]
    routes: list[tuple[str, ...]]
    asked: list[tuple[list[int], int]]
    reset: tuple[str, ...]


class Encoder:
    """Encodes records with one tokenizer and its chat template; control tokens in their contents are text (content.py).

    A message without ``sub_state`` is written to every sub-state, as is any message when the adapter has only one (the
    published adapters).
    """

    def __init__(self, tokenizer: Any, sub_states: Sequence[str]) -> None:
        self.tokenizer, self.contents = tokenizer, Contents(tokenizer)
        self.sub_states = tuple(sub_states)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def record(self, record: Record) -> EncodedRecord:
        """Raises RecipeError for a sub-state that the adapter has not, or messages that the template refuses."""
        self._check(record.reset)
        taken: list[str] = []
        rendered = [self.render([self._safe(m, taken)]) for m in record.memory]
        for conversation in record.conversations:
            messages = [self._safe(m, taken) for m in one_system(conversation.messages)]
            tools = self.contents.protect(conversation.tools, taken)
            rendered += self.split(Conversation(messages, tools))
        ids = self.contents.encode(rendered, taken)
        memory, pairs = ids[: len(record.memory)], ids[len(record.memory) :]
        asked = [
            (prompt + answer, 1 if conversation.whole else len(prompt))
            for conversation, prompt, answer in zip(record.conversations, pairs[::2], pairs[1::2], strict=True)
        ]
        return EncodedRecord(memory, [self.route(m) for m in record.memory], asked, record.reset)

    def texts(self, texts: list[str]) -> list[list[int]]:
        """Ids of rendered texts; control tokens in them are control tokens."""
        return self.contents.encode(texts)

    def render(self, messages: list[dict[str, Any]], tools: Any = None, prompt: bool = False) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # templates raise what they like
            roles = [m["role"] for m in messages]
            raise RecipeError(f"the backbone's chat template refuses messages with roles {roles}: {error}") from error
        return text

    def split(self, conversation: Conversation) -> tuple[str, str]:
        """The prompt of a conversation and the answer with its end-of-turn token."""
        prompt = self.render(conversation.messages[:-1], conversation.tools, prompt=True)
        whole = self.render(conversation.messages, conversation.tools)
        if whole.startswith(prompt):
            return prompt, whole[len(prompt) :].rstrip("\n")
        # templates that change what came before (thinking blocks): the plain answer and end of turn
        answer = conversation.messages[-1]
        if answer.get("tool_calls"):
            raise RecipeError("the backbone's chat template changes earlier messages: it cannot learn to call tools")
        return prompt, (answer["content"] + (self.tokenizer.eos_token or "")).rstrip("\n")

    def route(self, message: dict[str, Any]) -> tuple[str, ...]:
        """The sub-states that a memory message is written to."""
        named = message.get("sub_state")
        if not named or len(self.sub_states) == 1:
            return self.sub_states
        names = (named,) if isinstance(named, str) else tuple(named)
        self._check(names)
        return names

    def _safe(self, message: Mapping[str, Any], taken: list[str]) -> dict[str, Any]:
        safe: dict[str, Any] = self.contents.protect(normal_form(message), taken)
        return safe

    def _check(self, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self.sub_states]:
            raise RecipeError(f"no sub-state {unknown[0]!r} in the adapter; it has {sorted(self.sub_states)}")
