"""What a training step costs: 8192 tokens written, 512 seen that read them, a loss on the last 128 of these, backward.

    python benchmarks/gpu_sft.py
    python benchmarks/gpu_sft.py --compiled

Qwen3-4B's shape with random weights under bfloat16 autocast, sdpa; the adapter is float32 and trainable, and the step
is the trainer's: states of their own, a pass that writes, a pass that reads, gradients to the adapter alone. The frozen
backbone does the same two passes with gradients to their input embeddings (its first pass enters the loss with factor
0, so that backward runs through both). The optimiser is left out on both sides. Both are measured twice: called from
Python, which on a slow processor cannot launch kernels as fast as they run, and as CUDA graphs, in which nothing waits
for Python. ``--compiled`` puts both losses through torch.compile instead, as the trainer does with its own: minutes
longer, results in a file of their own. If the activations do not fit, give ``--checkpointing``: non-reentrant gradient
checkpointing on both sides.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measuring import (
    Call,
    bars,
    beside,
    best_device,
    compare,
    environment,
    free,
    interleaved,
    parser,
    peak_bytes,
    print_table,
    repeated,
    write_results,
)
from qwen3_shape import MODES, build_model, model_bytes, random_ids, routes, with_memory
from torch import Tensor
from torch.nn.functional import cross_entropy

from deltamem_agents.memory import DeltaMemory

NAME = "gpu_sft"
WRITTEN, SEEN, LEARNT = 8192, 512, 128
TINY_TOKENS = (64, 32, 8)
CAUSAL = {
    "full_attention": None
}  # no mask at all: transformers makes one while a graph is captured, for slower kernels


class Step:
    """One row of tokens to write and one to see, for both sides."""

    def __init__(self, model: Any, written: int, seen: int, learnt: int) -> None:
        self.written = random_ids(model, 1, written, seed=1)
        self.seen = random_ids(model, 1, seen, seed=2)
        self.learnt = learnt

    def loss(self, model: Any, hidden: Tensor) -> Tensor:
        """Mean cross-entropy of the last tokens seen, from hidden states (1, T, D)."""
        logits = model.get_output_embeddings()(hidden[0, -self.learnt - 1 : -1])
        return cross_entropy(logits.float(), self.seen[0, -self.learnt :])

    def frozen(self, model: Any, compiled: bool) -> Call:
        embed = model.get_input_embeddings()

        def loss_of(first: Tensor, second: Tensor) -> Tensor:
            with torch.autocast(model.device.type, dtype=torch.bfloat16):
                before = model.base_model(inputs_embeds=first, attention_mask=CAUSAL, use_cache=False)[0]
                hidden = model.base_model(inputs_embeds=second, attention_mask=CAUSAL, use_cache=False)[0]
                return self.loss(model, hidden) + 0.0 * before.float().mean()

        call = whole(loss_of, compiled)

        def step() -> None:
            call(*(embed(ids).detach().requires_grad_() for ids in (self.written, self.seen))).backward()

        return step

    def trained(self, model: Any, memory: DeltaMemory, mode: str, compiled: bool) -> Call:
        where = routes(mode, *self.written.shape, model.device)
        write_mask, read_mask = (torch.ones_like(ids, dtype=torch.bool) for ids in (self.written, self.seen))

        def loss_of() -> Tensor:
            with torch.autocast(model.device.type, dtype=torch.bfloat16):
                state = memory.new_state(1, device=model.device, hashed=False)
                with memory.bind(state, sub_states=where, token_mask=write_mask) as bound:
                    model.base_model(input_ids=self.written, attention_mask=CAUSAL, use_cache=False)
                with memory.bind(bound.state, write=False, token_mask=read_mask):
                    hidden = model.base_model(input_ids=self.seen, attention_mask=CAUSAL, use_cache=False)[0]
                return self.loss(model, hidden)

        call = whole(loss_of, compiled)

        def step() -> None:
            memory.zero_grad(set_to_none=True)
            call().backward()

        return step


def whole(loss_of: Callable[..., Tensor], compiled: bool) -> Callable[..., Tensor]:
    """``loss_of`` as one compiled graph, where that is asked for."""
    return torch.compile(loss_of, dynamic=False, fullgraph=True) if compiled else loss_of


def check_gradients(memory: DeltaMemory) -> None:
    """Every parameter of every layer has learnt something, or the step is not the trainer's."""
    for name, parameter in memory.named_parameters():
        gradient = parameter.grad
        if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
            raise SystemExit(f"{name} has no gradient, or one that is not finite: the figures would be void")


def checkpointed(model: Any) -> None:
    """Gradients must reach the first layer's input, or its checkpoint would keep none."""
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()


def measure(
    frozen: Any, before: int | None, mode: str, tokens: tuple[int, int, int], args: argparse.Namespace
) -> dict[str, Any]:
    device = frozen.device
    model, memory = with_memory(frozen, mode, dtype=torch.float32, trainable=True)
    if args.checkpointing:
        checkpointed(model)
    step = Step(frozen, *tokens)
    sides = {
        "frozen": step.frozen(frozen, args.compiled),
        "memory": step.trained(model, memory, mode, args.compiled),
    }
    took = interleaved(sides, device, args.repeats)
    check_gradients(memory)
    peak = peak_bytes(sides["memory"], device)
    graphs = {}
    if not args.compiled:
        replays = {name: repeated(side, 1, device) for name, side in sides.items()}
        graphs = {"graph": compare(interleaved(replays, device, args.repeats), None, None)}
    parameters = sum(p.numel() for p in memory.parameters())
    memory.detach()
    free(device)
    return {"mode": mode, "parameters": parameters, **compare(took, before, peak), **graphs}


def main() -> None:
    asked = parser(__doc__, NAME)
    asked.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES), help="adapters")
    asked.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on both sides")
    asked.add_argument("--compiled", action="store_true", help="both sides through torch.compile")
    args = asked.parse_args()
    name, device = f"{NAME}_compiled" if args.compiled else NAME, best_device()
    tokens = TINY_TOKENS if args.tiny else (WRITTEN, SEEN, LEARNT)
    frozen = build_model(device, args.tiny)
    if args.checkpointing:
        checkpointed(frozen)
    step = Step(frozen, *tokens).frozen(frozen, args.compiled)
    step()
    before = peak_bytes(step, device)
    document: dict[str, Any] = {
        "environment": environment(device),
        "tiny": args.tiny,
        "tokens": dict(zip(("written", "seen", "learnt"), tokens, strict=True)),
        "checkpointing": args.checkpointing,
        "compiled": args.compiled,
        "weights_bytes": model_bytes(frozen),
        "rows": [],
    }
    for mode in args.modes:
        document["rows"].append(measure(frozen, before, mode, tokens, args))
        write_results(args.out, name, document)
    report(document["rows"])
    names = [row["mode"] for row in document["rows"]]
    speeds = {"speed": [row["ratio"] for row in document["rows"]]}
    bars(args.out / f"{name}.png", names, speeds, "frozen time / time with memory", 1.0)


def report(rows: list[dict[str, Any]]) -> None:
    print_table(
        ("adapter", "frozen s", "memory s", "ratio", "frozen GiB", "memory GiB", "peak ratio", "ratio as graphs"),
        [(r["mode"], *beside(r), r["graph"]["ratio"] if "graph" in r else "not run") for r in rows],
    )


if __name__ == "__main__":
    main()
