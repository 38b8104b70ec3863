"""``deltamem demo``: three processes, one memory. What process 1 was told, processes 2 and 3 know without a prompt."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from ..errors import DeltaMemError
from .options import DEFAULT, AdapterOption, StoreOption, examples, table

if TYPE_CHECKING:
    from .demo_script import Asked, Script

EXAMPLES = examples(
    "deltamem demo",
    "deltamem demo --seed 7",
    "deltamem demo --store demo.db && deltamem agents list --store demo.db",
)
PASS = 0.8
TASK = "task_progress"


@dataclass(frozen=True)
class Answered:
    """A question with the prompt that was sent, and what the model said with memory and without."""

    asked: "Asked"
    prompt: str
    memory: str
    frozen: str

    @property
    def leaked(self) -> list[str]:
        """What was told and stands in the prompt all the same."""
        from .demo_script import held

        return held(self.prompt, self.asked.secrets)

    @property
    def right(self) -> bool:
        return _same(self.memory, self.asked.answer) and not self.leaked

    @property
    def right_without(self) -> bool:
        return _same(self.frozen, self.asked.answer)


def demo(
    store: StoreOption = None,
    adapter: AdapterOption = DEFAULT,
    seed: Annotated[int | None, typer.Option(help="Draw the same names and values again.")] = None,
) -> None:
    """Three processes, one memory: told in the first, asked in the others, with nothing of it in any prompt.

    The frozen model answers each question a second time without memory. Exit code 1 when the memory answers fewer than
    80 % right. What is told, and how, is drawn at random for each run; processes 2 and 3 are given the questions and
    the store only.
    """
    seed = SystemRandom().randrange(1_000_000) if seed is None else seed
    with tempfile.TemporaryDirectory(prefix="deltamem-") as folder:
        answered = _run(store or str(Path(folder) / "memory.db"), adapter, seed)
    _summary(answered)
    if sum(one.right for one in answered) < PASS * len(answered):
        raise typer.Exit(1)


def _run(store: str, adapter: str, seed: int) -> list[Answered]:
    from .demo_script import RESET, new_script

    script = new_script(seed)
    agent = f"demo-{seed}-{uuid4().hex[:6]}"
    typer.echo(f"seed {seed}, agent {agent}, store {store}")
    base = {"store": store, "adapter": adapter, "agent": agent}
    start = time.monotonic()
    task = {"goal": script.goal, "steps": script.steps, "finished": script.finished}
    _process(1, "is told facts, calls a tool, works on a task", base | _first(script, task), ())
    second = [q for q in script.questions if q.process == 2]
    third = [q for q in script.questions if q.process == 3]
    before, after = [q for q in third if q.group != RESET], [q for q in third if q.group == RESET]
    answered = _process(2, "is asked for the facts", base | {"questions": [q.text for q in second]}, second)
    job = {"questions": [q.text for q in before], "reset": TASK, "then": [q.text for q in after]}
    answered += _process(3, "is asked where the task stands; then the task is forgotten", base | job, before + after)
    typer.echo(f"\nThree processes in {time.monotonic() - start:.0f} s.\n")
    return answered


def _first(script: "Script", task: Mapping[str, Any]) -> dict[str, Any]:
    return {"told": script.told, "records": script.records, "task": task}


def _process(number: int, title: str, job: Mapping[str, Any], questions: Sequence["Asked"]) -> list[Answered]:
    """Run one process to its end and print what it reports."""
    command = [sys.executable, "-m", f"{__package__}.demo_process"]
    answered: list[Answered] = []
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    one_thread = {"OMP_NUM_THREADS": "1"}  # a small model: more threads would only wait for each other
    with subprocess.Popen(command, env=one_thread | os.environ, **options) as child:
        typer.secho(f"\nProcess {number} (pid {child.pid}): {title}", bold=True)
        for event in _events(child, job):
            if event["event"] == "error":
                raise DeltaMemError(event["text"])
            if event["event"] == "asked":
                one = Answered(questions[len(answered)], event["prompt"], event["memory"], event["frozen"])
                answered.append(one)
                _print_answer(one)
            else:
                _print_event(event)
    if child.returncode or len(answered) != len(questions):
        raise DeltaMemError(f"process {number} of the demonstration ended early (exit code {child.returncode})")
    return answered


def _events(child: "subprocess.Popen[str]", job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.close()
    for line in child.stdout:
        yield json.loads(line)


def _print_event(event: Mapping[str, Any]) -> None:
    lines = {
        "user": "  user:    {text}",
        "agent": "  agent:   {text}",
        "call": "  calls:   {name} {arguments}",
        "result": "  result:  {text}",
        "report": "  reports: {text}",
        "reset": "  forgets: {text} is emptied, as version {version}",
        "end": "  ends at memory version {version}",
    }
    typer.echo(lines[event["event"]].format_map(event))


def _print_answer(one: Answered) -> None:
    asked = one.asked
    typer.echo(f"  prompt:  {one.prompt!r}")
    if one.leaked:
        typer.secho(f"           holds what was told: {one.leaked}", fg="red")
    elif asked.secrets:
        typer.echo(f"           holds none of: {', '.join(asked.secrets)}")
    verdict = "right" if one.right else f"wrong, it is {asked.answer}"
    typer.secho(f"  memory:  {one.memory}  ({verdict})", fg="green" if one.right else "red")
    typer.echo(f"  without: {one.frozen}")


def _summary(answered: Sequence[Answered]) -> None:
    rows = [
        (str(one.asked.process), one.asked.group, one.asked.text, _marked(one.memory, one.right),
         _marked(one.frozen, one.right_without))
        for one in answered
    ]  # fmt: skip
    table("Answers (✓ right, ✗ wrong)", ("process", "about", "question", "with memory", "without memory"), rows)
    clean = sum(not one.leaked for one in answered)
    typer.echo(f"Prompts that hold nothing of what was told: {clean} of {len(answered)}.")
    without = sum(one.right_without for one in answered)
    typer.echo(f"Right without memory: {without} of {len(answered)}.")
    typer.echo(f"Right with memory: {sum(one.right for one in answered)} of {len(answered)}.")


def _marked(text: str, right: bool) -> str:
    return f"{'✓' if right else '✗'} {text}"


def _same(one: str, other: str) -> bool:
    return one.strip().rstrip(".").casefold() == other.strip().rstrip(".").casefold()
