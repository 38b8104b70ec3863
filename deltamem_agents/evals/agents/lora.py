"""LoRA (arXiv 2106.09685): the parametric baseline. Weights are trained on what was told, and no text is kept."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import Engine, Generation, Request
from ...errors import DeltaMemError
from ..contract import Message
from ..metrics import require
from .base import EngineAgent, Prompt, asking, bare

IGNORE = -100
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")


class LoRA(EngineAgent):
    """A LoRA of the backbone (the library PEFT), trained from scratch on what was told; asked with the question alone.

    The messages, rendered one by one, are joined and cut into blocks; the loss is that of the next token. The frozen
    weights are shared with the engine, which costs no memory and leaves the engine's own model as it is: the LoRA is
    put on a second tree of modules over the same tensors.
    """

    def __init__(
        self,
        engine: Engine,
        name: str = "LoRA",
        *,
        rank: int = 16,
        alpha: int = 32,
        targets: Sequence[str] = QKVO,
        epochs: int = 3,
        learning_rate: float = 2e-4,
        block: int = 512,
        batch: int = 4,
        seed: int = 0,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            targets: names of the linear layers that get a LoRA.
            epochs: how often the text is seen, in an order that ``seed`` draws.
            learning_rate: of AdamW, constant, without weight decay.
            block: tokens of one training sequence.
            batch: sequences of one step.

        Raises:
            DeltaMemError: PEFT is not installed, or a size is less than 1.
        """
        super().__init__(engine, name, template_options)
        self._peft = require("peft", "the agent LoRA")
        sizes = {"rank": rank, "alpha": alpha, "epochs": epochs, "block": block, "batch": batch}
        if wrong := [f"{key}={value}" for key, value in sizes.items() if value < 1]:
            raise DeltaMemError(f"LoRA with {wrong[0]}: give 1 or more")
        self.rank, self.alpha, self.targets, self.epochs = rank, alpha, tuple(targets), epochs
        self.learning_rate, self.block, self.batch, self.seed = (
            learning_rate,
            min(block, engine.max_length),
            batch,
            seed,
        )
        self.config |= {**sizes, "targets": list(targets), "learning_rate": learning_rate, "seed": seed}
        self._model: Any = None

    def forget(self) -> None:
        """Drop the LoRA."""
        self._model = None

    def tell(self, messages: Sequence[Message]) -> None:
        """Train on the messages; a second time, go on from the weights of the first, on the new messages alone.

        Raises:
            DeltaMemError: the backbone has no layers of the names in ``targets``.
        """
        ids = [number for message in messages for number in self.engine.text.message(bare(message))]
        if not ids:
            return
        devices = [self.engine.device] if self.engine.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(self.seed)
            if self._model is None:
                self._model = self._new_model()
            self._train(torch.tensor(ids))

    @property
    def state_bytes(self) -> int:
        """Bytes of the LoRA's weights."""
        return sum(p.numel() * p.element_size() for p in self._weights())

    def _weights(self) -> list[nn.Parameter]:
        return [] if self._model is None else [p for p in self._model.parameters() if p.requires_grad]

    def _prompt(self, question: str, max_tokens: int) -> Prompt:
        return Prompt(self._ids([asking(question)]))

    def _generate(self, prompts: Sequence[list[int]], max_tokens: int) -> list[Generation]:
        if self._model is None:
            return super()._generate(prompts, max_tokens)
        rows = [
            self.engine.row(Request(ids=ids, max_new_tokens=max_tokens, template_options=self.template_options))
            for ids in prompts
        ]
        width = max(len(row.prompt) for row in rows)
        inputs = torch.full((len(rows), width), self.engine.pad)
        mask = torch.zeros_like(inputs)
        for i, row in enumerate(rows):
            inputs[i, width - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[i, width - len(row.prompt) :] = 1
        longest = min(max_tokens, self.engine.max_length - width)
        with self.engine.lock, torch.no_grad():
            out = self._model.generate(
                input_ids=inputs.to(self.engine.device),
                attention_mask=mask.to(self.engine.device),
                max_new_tokens=longest,
            )
        for row, said in zip(rows, out[:, width:].tolist(), strict=True):
            for token in said:
                if row.finish_reason is None:
                    row.push(token)
            row.give_up()
        return [row.result() for row in rows]

    def _new_model(self) -> Any:
        config = self._peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        model = shared_copy(self.engine)
        try:
            return self._peft.get_peft_model(model, config).eval()
        except ValueError as error:
            raise DeltaMemError(
                f"no LoRA on {list(self.targets)} ({error}): give targets=…, names of the backbone's linear layers"
            ) from error

    def _train(self, ids: Tensor) -> None:
        optimizer = torch.optim.AdamW(self._weights(), lr=self.learning_rate, weight_decay=0.0)
        blocks = list(ids.split(self.block))
        for inputs, mask in self._steps(blocks):
            labels = inputs.masked_fill(mask == 0, IGNORE)
            loss = self._model(input_ids=inputs, attention_mask=mask, labels=labels, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _steps(self, blocks: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids and mask (B, T) of each step; a last block of one token has nothing to learn."""
        blocks = [block for block in blocks if len(block) > 1]
        for _ in range(self.epochs):
            order = torch.randperm(len(blocks)).tolist()
            for start in range(0, len(order), self.batch):
                chosen = [blocks[i] for i in order[start : start + self.batch]]
                inputs = nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=self.engine.pad)
                sizes = torch.tensor([len(block) for block in chosen])
                mask = (torch.arange(inputs.shape[1]) < sizes[:, None]).long()
                yield inputs.to(self.engine.device), mask.to(self.engine.device)


def shared_copy(engine: Engine) -> Any:
    """A second tree of modules over the same frozen tensors, without δ-mem's hooks, that generates greedily."""
    from transformers import GenerationConfig

    model = engine.model
    memo: dict[int, Any] = {id(engine.memory): engine.memory}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=False) if type(p) is nn.Parameter else p
    memo |= {id(b): b for b in model.buffers()}
    with engine.lock:
        twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        for name in ("prepare_inputs_for_generation", "_get_stopping_criteria", "_deltamem_attached"):
            vars(module).pop(name, None)
    twin.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=sorted(engine.ends), pad_token_id=engine.pad, use_cache=True
    )
    return twin
