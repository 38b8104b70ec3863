"""What a report says in words: how to read it, and what it does not show."""

import math

from .data import Found

FEW = 10
"""Examples of a cell, below which its interval is said to be too narrow."""

READING = (
    "Shares are in per cent, with 95 % intervals in brackets. Intervals come from a bootstrap over examples, drawn "
    "with all of their questions (those of one example are asked of one state), not over questions. An answer is an "
    "exact match when it is the whole value, letter by letter. All agents answer greedily with the same frozen "
    "backbone."
)


def limits(found: Found) -> str:
    """What the numbers do not show, as a list."""
    world = found.benchmarks.get("World-MAB", {})
    lines = [
        "World-MAB is made by rules: short sentences of the same kinds as those that the backbone and the adapter were "
        "trained on, with other seeds. It shows how the memory works inside that world, not how it does on free text.",
        "Its Test_Time_Learning asks for pairs that were told, not for a rule that has to be learnt from examples; its "
        "Long_Range_Understanding is the progress of a task, not the summary of a book; its Conflict_Resolution has "
        "single hops alone.",
        "One backbone and one training run of each adapter: intervals say how much the examples vary, not how much "
        "trainings with other seeds would.",
        "Seconds belong to the machines named above, and to whatever else ran on them.",
    ]
    kinds = {a.head["config"]["agent"] for agents in found.benchmarks.values() for a in agents.values()}
    if steps := _lora_steps(found):
        lines.append(
            "The LoRA has one fixed budget, which was not tuned, and is trained on the text as it was told, not on "
            f"questions about it: {_span(steps)} for an example here. More steps, another learning "
            "rate or paraphrases may well do better."
        )
    if kinds & {"BM25", "DeltaMemBM25"}:
        lines.append(
            "Retrieval searches words, with fixed k and budget; in a world of unique names that is easy. The state has "
            "a fixed size, text grows."
        )
    if "Dense" in kinds:
        lines.append(
            "Retrieval by vectors is as good as its embeddings, of which one was tried, with fixed k and budget."
        )
    if judge := found.settings["plan"].get("judge"):
        lines.append(
            f"Some answers of MemoryAgentBench are judged by a model, `{judge}`, asked in this library's words."
        )
    counts = [len(ids) for answers in world.values() for ids in _examples(answers.lines).values()]
    if counts and min(counts) < FEW:
        lines.append(
            f"Some cells have {min(counts)} example{'s' * (min(counts) > 1)} only: below {FEW}, intervals are too "
            "narrow. Where all examples are alike, the interval is a point."
        )
    if "LoCoMo" not in found.benchmarks and "MemoryAgentBench" not in found.benchmarks:
        lines.append("Nothing here comes from texts of people: LoCoMo and MemoryAgentBench were not run.")
    return "\n".join(f"- {line}" for line in lines)


def _lora_steps(found: Found) -> list[int]:
    """Steps that the LoRA was trained for each example."""
    steps = []
    for head in (answers.head for agents in found.benchmarks.values() for answers in agents.values()):
        config = head["config"]
        if config["agent"] == "LoRA":
            told = [example["told_tokens"] for example in head["examples"].values()]
            blocks = [math.ceil(count / min(config["block"], config["window"])) for count in told]
            steps += [config["epochs"] * math.ceil(count / config["batch"]) for count in blocks]
    return steps


def _span(steps: list[int]) -> str:
    low, high = min(steps), max(steps)
    return f"{low} steps" if low == high else f"{low} to {high} steps"


def _examples(lines: list[dict[str, object]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in lines:
        found.setdefault(str(line["source"]), set()).add(str(line["example"]))
    return found
