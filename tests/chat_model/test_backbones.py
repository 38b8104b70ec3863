"""Families of backbones, tiny and random, with their own chat templates: what a user does works with each of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from tiny import SENTENCES, SIZES, SUB_STATES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.memory import AdapterConfig, new_adapter

TEMPLATES = Path(__file__).parents[1] / "engine" / "templates"
TOKENS = json.loads((TEMPLATES / "tokens.json").read_text())
KINDS = {
    "qwen3": "qwen3",
    "qwen3_thinking": "qwen3",
    "smollm3": "smollm3",
    "llama3": "llama",
    "mistral": "mistral",
    "gemma": "gemma3_text",
}


def look_up(item: str) -> str:
    """Look something up."""
    return item


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    own = TOKENS[name]
    for kind in ("special", "added"):
        tokenizer.add_tokens([AddedToken(t, special=kind == "special", normalized=False) for t in own[kind]])
    tokenizer.eos_token, tokenizer.pad_token = own["eos"], own["eos"]
    if "bos" in own:
        tokenizer.bos_token = own["bos"]
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return tokenizer


@pytest.fixture(params=sorted(KINDS))
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An adapter folder of one family."""
    tokenizer = tokenizer_of(request.param)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        KINDS[request.param],
        vocab_size=len(tokenizer),
        **SIZES,
        max_position_embeddings=4096,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    folder = tmp_path / request.param
    model.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    adapter = new_adapter(model, AdapterConfig(rank=8, num_state_heads=4, sub_states=SUB_STATES), output_std=0.05)
    adapter.save(folder / "adapter")
    return folder


def test_what_a_user_does(make_model: Callable[..., DeltaMemChatModel], family: Path) -> None:
    model = make_model(adapter=str(family), agent_id="otto", max_tokens=12)
    call: Any = {"name": "look_up", "args": {"item": "rice"}, "id": "c1"}
    talk = [
        SystemMessage("Be brief."),
        HumanMessage("Where is the rice?"),
        HumanMessage("Look it up."),
        AIMessage("", tool_calls=[call]),
        ToolMessage("in room seven", tool_call_id="c1"),
    ]
    reply = model.bind_tools([look_up]).invoke(talk, history="all")
    assert reply.usage_metadata is not None and reply.usage_metadata["output_tokens"] > 0
    written = model.opened_store.head("otto")
    assert written == reply.response_metadata["memory_version_after"]
    scores = model.memory("otto").recall_scores("Where is the rice?", ["room seven", "tank"])
    assert all(abs(score) > 1e-4 for score in scores)  # what was written is read
    ask = {"memory_version": written, "max_tokens": 32, "temperature": 1.0, "seed": 1}
    whole, chunks = model.invoke("Where?", **ask), list(model.stream("Where?", **ask))
    streamed = sum(chunks[1:], chunks[0])
    assert streamed.content == whole.content and streamed.additional_kwargs == whole.additional_kwargs
    assert bool(whole.additional_kwargs.get("reasoning_content")) == (family.name == "qwen3_thinking")
    forced = model.bind_tools([look_up], tool_choice="any").invoke("Where?", max_tokens=64, temperature=1.0, seed=1)
    assert forced.tool_calls[0]["name"] == "look_up" and set(forced.tool_calls[0]["args"]) == {"item"}
    place = {"title": "Place", "type": "object", "properties": {"room": {"type": "integer"}}, "required": ["room"]}
    found = model.with_structured_output(place, method="json_schema").invoke("Where?", max_tokens=64)
    assert isinstance(found["room"], int)
    with pytest.raises(ContextOverflowError, match=r"has 5\d\d\d tokens, .* 4096"):
        model.invoke("rice " * 5000)
