"""The chat format of our own backbones: Qwen's (Hermes) template without thinking, and a tokenizer that speaks it.

The template is prefix-stable: rendering one more message only appends. So a message rendered alone, as memory writes
do, is exactly its part of a whole dialogue. ``render`` is the same template in plain Python, for training data.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

START, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CONTROL = (STOP, START, END)
MARKUP = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages and messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- TOOLS_HEAD }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
    {{- TOOLS_TAIL + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first and tools %}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message.content or '' }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {%- if not loop.first or message.content %}{{- '\\n' }}{% endif %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
""".replace("TOOLS_HEAD", repr(TOOLS_HEAD)).replace("TOOLS_TAIL", repr(TOOLS_TAIL))


def render(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None, prompt: bool = False
) -> str:
    """What ``apply_chat_template`` gives with :data:`CHAT_TEMPLATE`."""
    parts = []
    if tools:
        own = messages[0]["content"] + "\n\n" if messages and messages[0]["role"] == "system" else ""
        listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        parts.append(f"{START}system\n{own}{TOOLS_HEAD}{listed}{TOOLS_TAIL}{END}\n")
        messages = messages[1:] if own else messages
    parts += [_message(m) for m in messages]
    return "".join(parts) + (f"{START}assistant\n" if prompt else "")


def _message(message: dict[str, Any]) -> str:
    role, content = message["role"], message.get("content") or ""
    if role == "tool":
        return f"{START}user\n<tool_response>\n{content}\n</tool_response>{END}\n"
    calls = [_call(call.get("function", call)) for call in message.get("tool_calls") or ()]
    return f"{START}{role}\n" + "\n".join([content, *calls] if content else calls) + f"{END}\n"


def _call(call: dict[str, Any]) -> str:
    arguments = call["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {text}}}\n</tool_call>'


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Byte-level BPE with digits one by one, and the chat template.

    Args:
        texts: contents of messages, without control tokens.
        vocab_size: tokens in all, the 256 bytes and the control tokens among them.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*CONTROL, *MARKUP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=STOP, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": [START, END]})
    tokenizer.add_tokens([AddedToken(m, special=False, normalized=False) for m in MARKUP])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
