"""What a training step costs: 8192 tokens written, 512 seen that read them, a loss on the last 128 of these, backward.

    python benchmarks/gpu_sft.py
    python benchmarks/gpu_sft.py --ways graph
    python benchmarks/gpu_sft.py --ways compiled

Qwen3-4B's shape with random weights under bfloat16 autocast, sdpa; the adapter is float32 and trainable, and the step
is the trainer's: states of their own, a pass that writes, a pass that reads, gradients to the adapter alone. The frozen
backbone does the same two passes with gradients to their input embeddings (its first pass enters the loss with factor
0, so that backward runs through both). The optimiser is left out on both sides. ``--ways``: called from Python
(python), which on a slow processor cannot launch kernels as fast as they run; as CUDA graphs (graph), in which nothing
waits for Python; and with both losses through torch.compile, as the trainer does with its own (compiled): minutes
longer. Each way has a file of results of its own, written after each adapter. If the activations do not fit, give
``--checkpointing``: non-reentrant gradient checkpointing on both sides.
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
    graphs,
    interleaved,
    parser,
    peak_bytes,
    print_table,
    write_results,
)
from qwen3_shape import MODES, build_model, model_bytes, random_ids, routes, with_memory
from torch import Tensor
from torch.nn.functional import cross_entropy

from deltamem_agents.memory import DeltaMemory

NAME = "gpu_sft"
FILES = {"python": NAME, "graph": f"{NAME}_graph", "compiled": f"{NAME}_compiled"}
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
    frozen: Any, step: Step, plain: Call, before: int | None, mode: str, way: str, args: argparse.Namespace
) -> dict[str, Any]:
    """A row of the results. ``plain``: the frozen side's step; ``before``: its peak, no adapter on the device."""
    device = frozen.device
    model, memory = with_memory(frozen, mode, dtype=torch.float32, trainable=True)
    if args.checkpointing:
        checkpointed(model)
    sides = {"frozen": plain, "memory": step.trained(model, memory, mode, way == "compiled")}
    peak = None
    if way == "graph":
        sides = graphs(sides, device)
    else:
        sides["memory"]()
        peak = peak_bytes(sides["memory"], device)
    took = interleaved(sides, device, args.repeats)
    memory.zero_grad(set_to_none=False)  # a graph writes to where the gradients stood when it was captured
    sides["memory"]()
    check_gradients(memory)
    memory.detach()
    return {"mode": mode, "parameters": sum(p.numel() for p in memory.parameters()), **compare(took, before, peak)}


def main() -> None:
    asked = parser(__doc__, NAME)
    asked.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES), help="adapters")
    asked.add_argument("--ways", nargs="+", default=["python", "graph"], choices=list(FILES), help="how it is called")
    asked.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on both sides")
    args = asked.parse_args()
    device = best_device()
    frozen = build_model(device, args.tiny)
    if args.checkpointing:
        checkpointed(frozen)
    for way in args.ways:
        measure_way(frozen, way, args)


def measure_way(frozen: Any, way: str, args: argparse.Namespace) -> None:
    """One file of results."""
    tokens, device = TINY_TOKENS if args.tiny else (WRITTEN, SEEN, LEARNT), frozen.device
    step = Step(frozen, *tokens)
    plain = step.frozen(frozen, way == "compiled")
    before = None  # all graphs share one pool
    if way != "graph":
        plain()
        before = peak_bytes(plain, device)
    document: dict[str, Any] = {
        "environment": environment(device),
        "tiny": args.tiny,
        "tokens": dict(zip(("written", "seen", "learnt"), tokens, strict=True)),
        "checkpointing": args.checkpointing,
        "way": way,
        "weights_bytes": model_bytes(frozen),
        "rows": [],
    }
    print(f"called: {way}", flush=True)
    for mode in args.modes:
        document["rows"].append(measure(frozen, step, plain, before, mode, way, args))
        write_results(args.out, FILES[way], document)
        free(device)
    print_table(
        ("adapter", "frozen s", "memory s", "ratio", "frozen GiB", "memory GiB", "peak ratio"),
        [(row["mode"], *beside(row)) for row in document["rows"]],
    )
    names = [row["mode"] for row in document["rows"]]
    speeds = {"speed": [row["ratio"] for row in document["rows"]]}
    bars(args.out / f"{FILES[way]}.png", names, speeds, "frozen time / time with memory", 1.0)


if __name__ == "__main__":
    main()
