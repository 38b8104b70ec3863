"""What the embedded model costs on a CPU: the first token of an answer, tokens a second, a turn written, a long text.

    python benchmarks/cpu.py

The default adapter, float32, with 2 threads (``--threads``). The first token: a question answered with a memory of some
facts, to the end of the first step. Tokens a second: a reply of 128 tokens whose end is not heard, over the whole call,
prompt included, with memory and without; the same reply with memory as a stream. A turn written: a message of 512
tokens. Texts of 512 to 32768 tokens, in pieces of 8192 as the engine writes them, with the exponent of their cost: 1
where twice the text takes twice the time. About five minutes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines import without_end
from measuring import environment, has_matplotlib, interleaved, parser, print_table, ratio, write_results

from deltamem_agents.config import DEFAULT_ADAPTER
from deltamem_agents.engine import Engine, load_engine
from deltamem_agents.memory import MemoryState

NAME = "cpu"
CPU = torch.device("cpu")
FACTS = (
    "The port of atlas is 48213.",
    "Mila Otto owns beacon.",
    "The budget of Aurora is 7200.",
    "The host of cedar is rack nine.",
)
QUESTION = [{"role": "user", "content": "What is the port of atlas?"}]
TOKENS, TURN = 128, 512
LENGTHS = tuple(512 * 2**i for i in range(7))
TINY_LENGTHS = (32, 64, 128)
TARGETS = {"first_token_s": 0.3, "tokens_per_s": 100.0, "turn_s": 0.5}


def turn_of(engine: Engine, tokens: int) -> dict[str, str]:
    """A user's message that is written as ``tokens`` tokens, markup included, or a few less."""
    words = [word for i in range(tokens) for word in FACTS[i % len(FACTS)].split()][:tokens]

    def message(count: int) -> dict[str, str]:
        return {"role": "user", "content": " ".join(words[:count])}

    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(engine.text.message(message(middle))) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return message(low)


def told(engine: Engine) -> MemoryState:
    return engine.write(engine.new_state(), [{"role": "user", "content": fact} for fact in FACTS])


def measure_answers(engine: Engine, tokens: int, repeats: int) -> dict[str, Any]:
    """First token and tokens a second, of "memory" and "frozen" in turn; the speed of a stream over the whole's."""
    state = told(engine)

    def answer(count: int, reads: bool) -> None:
        (reply,) = engine.generate([QUESTION], state if reads else None, max_new_tokens=count)
        if reply.completion_tokens != count:
            raise SystemExit(
                f"{count} tokens were asked for, {reply.completion_tokens} came: the figures would be void"
            )

    sides = {
        f"{name}{count}": lambda reads=reads, count=count: answer(count, reads)
        for count in (1, tokens)
        for name, reads in (("memory", True), ("frozen", False))
    }

    def stream() -> None:
        *_, last = engine.stream(QUESTION, state, max_new_tokens=tokens)
        if last.generation is None or last.generation.completion_tokens != tokens:
            raise SystemExit(f"a stream of {tokens} tokens has another length: the figures would be void")

    took = interleaved({**sides, "stream": stream}, CPU, repeats)
    found: dict[str, Any] = {"new_tokens": tokens, "stream": took["stream"]}
    for name in ("memory", "frozen"):
        first, whole = took[f"{name}1"], took[f"{name}{tokens}"]
        steps = whole["median_s"] - first["median_s"]
        found[name] = {
            "first_token_s": first["median_s"],
            "tokens_per_s": round(tokens / whole["median_s"], 1),
            "tokens_per_s_after_the_first": round((tokens - 1) / steps, 1),
            "first": first,
            "whole": whole,
        }
    found["ratio"] = ratio(found["memory"]["tokens_per_s"], found["frozen"]["tokens_per_s"])
    found["stream_ratio"] = ratio(took[f"memory{tokens}"]["median_s"], took["stream"]["median_s"])
    return found


def measure_writes(engine: Engine, lengths: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Each length after the other within a round, so that all of them see the same machine."""
    state = engine.new_state()
    turns = {str(length): turn_of(engine, length) for length in lengths}
    sides = {name: lambda turn=turn: engine.write(state, [turn]) for name, turn in turns.items()}
    took = interleaved(sides, CPU, repeats, warmups=1)
    return [{"tokens": len(engine.text.message(turn)), **took[name]} for name, turn in turns.items()]


def exponent(rows: Sequence[dict[str, Any]]) -> float:
    """Of the power law through all points, by least squares on their logarithms."""
    logs = np.log([[row["tokens"], row["median_s"]] for row in rows])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def options() -> argparse.Namespace:
    asked = parser(__doc__, NAME, repeats=5)
    asked.add_argument("--threads", type=int, default=2, help="of PyTorch")
    asked.add_argument("--longest", type=int, default=LENGTHS[-1], help="tokens of the longest text that is written")
    return asked.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    engine = without_end(load_engine(device="cpu"))
    lengths, turn, tokens = (TINY_LENGTHS, TINY_LENGTHS[-1], 8) if args.tiny else (LENGTHS, TURN, TOKENS)
    lengths = tuple(length for length in lengths if length <= args.longest)
    document: dict[str, Any] = {
        "environment": environment(),
        "tiny": args.tiny,
        "adapter": DEFAULT_ADAPTER,
        "fingerprint": engine.fingerprint,
        "targets": TARGETS,
        "answers": measure_answers(engine, tokens, args.repeats),
        "turn": measure_writes(engine, [turn], args.repeats)[0],
        "writes": measure_writes(engine, lengths, args.repeats),
    }
    document["exponent"] = round(exponent(document["writes"]), 3)
    write_results(args.out, NAME, document)
    report(document)
    plot(document, args.out / f"{NAME}.png")


def report(document: dict[str, Any]) -> None:
    answers = document["answers"]
    memory, frozen = answers["memory"], answers["frozen"]
    streamed = round(answers["new_tokens"] / answers["stream"]["median_s"], 1)
    print_table(
        ("", "memory", "frozen", "target"),
        [
            ("first token, s", memory["first_token_s"], frozen["first_token_s"], TARGETS["first_token_s"]),
            ("tokens/s", memory["tokens_per_s"], frozen["tokens_per_s"], TARGETS["tokens_per_s"]),
            ("tokens/s of a stream", streamed, None, TARGETS["tokens_per_s"]),
            (f"write {document['turn']['tokens']} tokens, s", document["turn"]["median_s"], None, TARGETS["turn_s"]),
        ],
    )
    print_table(("tokens written", "s"), [(row["tokens"], row["median_s"]) for row in document["writes"]])
    print(f"exponent: {document['exponent']}")


def plot(document: dict[str, Any], path: Path) -> None:
    """Bars beside their targets, and the cost of writing on two logarithmic axes."""
    if not has_matplotlib():
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    first, speed, long = figure.subplots(1, 3, width_ratios=(1, 1, 2))
    answers, turn = document["answers"], document["turn"]
    for axes, field, unit in ((first, "first_token_s", "first token, s"), (speed, "tokens_per_s", "tokens/s")):
        axes.bar_label(axes.bar(("memory", "frozen"), [answers[name][field] for name in ("memory", "frozen")]))
        axes.axhline(TARGETS[field], color="gray", linestyle="--", linewidth=1)
        axes.set(ylabel=unit, ymargin=0.1)
    rows = document["writes"]
    tokens, times = np.array([row["tokens"] for row in rows]), np.array([row["median_s"] for row in rows])
    fit = np.polyval(np.polyfit(np.log(tokens), np.log(times), 1), np.log(tokens))
    long.loglog(tokens, times, "o", label="measured")
    long.loglog(tokens, np.exp(fit), label=f"tokens to the power of {document['exponent']}")
    long.axhline(TARGETS["turn_s"], color="gray", linestyle="--", linewidth=1, label=f"aim for {turn['tokens']} tokens")
    long.set(xlabel="tokens written", ylabel="s")
    long.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
