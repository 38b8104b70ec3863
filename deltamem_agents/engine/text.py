"""Messages to token ids, so that no content ever becomes a control token (content.py); and ids back to text."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..content import Contents, Message, normal_form, one_system
from ..errors import BackboneError
from .adapting import Marks, adapt
from .templates import Habits, probe

ENDS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>")
OURS = frozenset(  # what apply_chat_template is told by us, and by nobody else
    "conversation messages tools chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)


class ChatText:
    """Rendering and encoding with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises BackboneError when the tokenizer has no chat template or no fast backend."""
        if not getattr(tokenizer, "chat_template", None):
            raise BackboneError("the tokenizer has no chat template: use an instruction-tuned backbone, or set one")
        self.tokenizer = tokenizer
        self._contents = Contents(tokenizer)
        self._marks = Marks(self._contents)
        self._habits: tuple[Any, Habits] | None = None  # of which template
        self.added_ids = self._contents.added_ids
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        self.ends = frozenset(added[name] for name in ENDS if name in added)
        markup = {added[name] for name in ("<tool_call>", "</tool_call>") if name in added}
        self.hidden = frozenset(tokenizer.all_special_ids) - markup

    @property
    def habits(self) -> Habits:
        """What the chat template can do; for what it cannot, messages are told in another way (adapting.py)."""
        template = self.tokenizer.chat_template
        if self._habits is None or self._habits[0] != template:
            self._habits = (template, probe(self._render))
        return self._habits[1]

    def message(self, message: Message) -> list[int]:
        """Ids of one message rendered alone, as it is written to memory.

        Raises:
            ValueError: a role that is not known, or content that is not text.
            BackboneError: the chat template refuses the message.
        """
        return self._encode([message], None, None, prompt=False)

    def prompt(
        self,
        conversation: Sequence[Message],
        tools: Sequence[Message] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of a conversation up to where the assistant answers. System messages are joined into one at the start.

        Args:
            template_options: further variables for the chat template, such as ``enable_thinking``.

        Raises:
            ValueError: a role that is not known, content that is not text, or an option that is no variable.
            BackboneError: the chat template refuses the messages.
        """
        return self._encode(one_system(conversation), tools, template_options, prompt=True)

    def markup(self, *parts: str) -> list[int]:
        """Ids of text of our own (its control tokens are control tokens) alternating with text that is not."""
        ids = [self._own(part) if i % 2 == 0 else self.plain(part) for i, part in enumerate(parts)]
        return [number for part in ids for number in part]

    def plain(self, text: str) -> list[int]:
        """Ids of text in which nothing is a control token."""
        return self._contents.plain(text)

    def sentences(self, ids: Sequence[int]) -> list[int]:
        """Number of the sentence, from 0, of each token: a sentence ends with its punctuation or at a line break."""
        texts = [self.tokenizer.decode([number]) for number in ids]
        numbers, current = [], 0
        for i, text in enumerate(texts):
            numbers.append(current)
            after = texts[i + 1] if i + 1 < len(texts) else ""
            spaced = not after or (after[0].isspace() and "\n" not in after) or ids[i + 1] in self.added_ids
            current += "\n" in text or (spaced and text.rstrip().endswith((".", "!", "?", "。", "！", "？")))
        return numbers

    def _own(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None,
        options: Mapping[str, Any] | None,
        *,
        prompt: bool,
    ) -> list[int]:
        if taboo := sorted(OURS & set(options or ())):
            raise ValueError(f"template option {taboo[0]!r} is no variable of a chat template: leave it out")
        taken: list[str] = []
        protect = partial(self._contents.protect, taken=taken)
        normal = [normal_form(m) for m in messages]
        told, own_tools, filled = adapt(normal, tools, self.habits, self._marks, protect)
        try:
            rendered = self._render(told, own_tools, prompt=prompt, **protect(options or {}))
            if filled and not prompt:  # a lone message: what stands before it is nobody's
                rendered = rendered.removeprefix(self._render(told[:1], None))
        except Exception as error:  # templates raise what they like
            roles = [m["role"] for m in messages]
            raise BackboneError(f"the backbone's chat template refuses messages with roles {roles}: {error}") from error
        return self._contents.encode([rendered], taken)[0]

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None,
        *,
        prompt: bool = False,
        **options: Any,
    ) -> str:
        rendered: str = self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **options
        )
        return rendered


class Detokenizer:
    """Text from tokens one by one, never half a character."""

    def __init__(self, text: ChatText) -> None:
        self._text = text
        self._ids: list[int] = []
        self._done = 0  # ids before this are out
        self._context = 0  # ids from this on are decoded together with new ones

    def push(self, token: int) -> str:
        """The text that ``token`` completes; "" while a character is incomplete."""
        if token in self._text.hidden:
            return ""
        self._ids.append(token)
        fresh = self._fresh()
        if not fresh or fresh.endswith("\ufffd"):
            return ""
        self._context, self._done = self._done, len(self._ids)
        return fresh

    def finish(self) -> str:
        """What was held back, without a last character that never became whole."""
        return self._fresh().rstrip("\ufffd")

    def _fresh(self) -> str:
        before = self._decode(self._ids[self._context : self._done])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        decoded: str = self._text.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded
