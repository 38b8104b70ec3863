"""Runs what is missing of a report; everything is kept in its folder, so that a run that was stopped goes on.

report.json         settings, commands, fingerprint, and each environment that a part was run in
<benchmark>/        answers and measurements of each agent, as :mod:`..runner` keeps them
curves/             curves.json, curves.png      perplexity.json      ablations.json
report.md, *.png    made of these; :func:`.sections.render` makes them again without running anything
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import deltamem_agents

from ...engine import Engine, load_engine
from ...errors import DeltaMemError
from ..contract import Benchmark
from ..curves import run_curves
from ..foreign import open_embeddings, open_judge
from ..locomo import LoCoMo
from ..mab import MemoryAgentBench
from ..perplexity import run_perplexity
from ..recall import check_writable
from ..runner import run
from ..world_mab import WorldMAB
from .data import read_json
from .plan import Plan, commands
from .roster import make_agents
from .sections import render

LIBRARIES = ("transformers", "rank-bm25", "peft")


def write_report(out: Path | str, plan: Plan | None = None, *, say: Callable[[str], None] = print) -> Path:
    """Run what is missing in the folder ``out``, then write ``out/report.md``, whose path is returned.

    Raises:
        DeltaMemError: as :func:`run_report` and :func:`.sections.render`.
    """
    run_report(out, plan, say=say)
    return render(out)


def run_report(out: Path | str, plan: Plan | None = None, *, say: Callable[[str], None] = print) -> None:
    """Run what is missing in the folder ``out``, and write no page.

    Raises:
        DeltaMemError: the folder belongs to another adapter, seed or text; a file or library is missing; or what a
            part raises.
    """
    plan, folder = plan or Plan(), Path(out)
    check_writable(folder / "report.json")
    if plan.judge is not None and plan.mab is None:
        raise DeltaMemError("a judge is for MemoryAgentBench alone: give its rows (--mab), or no judge")
    embeddings = None if plan.embeddings is None else open_embeddings(plan.embeddings)
    engine = load_engine(plan.adapter, device=plan.device)
    agents = make_agents(engine, plan.agents, plan.more_adapters, plan.device, embeddings)
    benchmarks = _benchmarks(plan, engine)
    _note(folder, plan, engine, [agent.name for agent in agents])
    for benchmark, limit in benchmarks:
        run(benchmark, agents, folder, limit=limit, say=say)
    if plan.curves_questions:
        run_curves(engine, folder / "curves", plan.curves_questions, plan.seed, say=say)
    if plan.perplexity_tokens:
        _perplexity(engine, folder / "perplexity.json", plan, say)


def environment(engine: Engine) -> dict[str, Any]:
    """Machine and versions; null for a library that is not installed."""
    device = engine.device
    found = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type}: {found}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "deltamem-agents": deltamem_agents.__version__,
        "torch": torch.__version__,
        **{name: _version(name) for name in LIBRARIES},
    }


def _benchmarks(plan: Plan, engine: Engine) -> list[tuple[Benchmark, int | None]]:
    """Benchmarks, with the most examples; all of them are made before anything is run, for their errors."""
    made: list[tuple[Benchmark, int | None]] = [(WorldMAB(plan.lengths, plan.examples, plan.seed), None)]
    if plan.locomo is not None:
        made.append((LoCoMo(plan.locomo, max_questions=plan.questions), plan.limit))
    if plan.mab is not None:
        judge = None if plan.judge is None else open_judge(plan.judge)
        made.append((mab_benchmark(plan.mab, engine, plan.limit, plan.questions, judge=judge), None))
    return made


def mab_benchmark(
    source: str, engine: Engine, limit: int | None = None, questions: int | None = None, **options: Any
) -> MemoryAgentBench:
    """MemoryAgentBench in tokens of ``engine``; ``limit`` rows of each source, ``questions`` of each row."""
    return MemoryAgentBench(
        source,
        count_tokens=lambda text: len(engine.text.plain(text)),
        max_examples=limit,
        max_questions=questions,
        **options,
    )


def _note(folder: Path, plan: Plan, engine: Engine, names: list[str]) -> None:
    """Write report.json. Raises DeltaMemError when what is there is of another adapter, seed or text."""
    path = folder / "report.json"
    text = None if plan.text is None else hashlib.sha256(_bytes(plan.text)).hexdigest()
    now: dict[str, Any] = {
        "fingerprint": engine.fingerprint,
        "seed": plan.seed,
        "text_sha256": text,
        "plan": json.loads(json.dumps(asdict(plan), default=str)),
        "agents": names,
        "commands": commands(plan, folder),
        "environments": [environment(engine)],
    }
    if path.exists():
        before = read_json(path, "fingerprint", "seed", "text_sha256", "environments")
        for key in ("fingerprint", "seed", "text_sha256"):
            if before[key] != now[key]:
                raise DeltaMemError(
                    f"{path} belongs to a report with {key}={before[key]}, now it is {now[key]}: give another folder"
                )
        others = [e for e in before["environments"] if e != now["environments"][0]]
        now["environments"] = [*others, *now["environments"]]
    if plan.ablations is not None:
        (folder / "ablations.json").write_bytes(_bytes(plan.ablations))
    path.write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _perplexity(engine: Engine, path: Path, plan: Plan, say: Callable[[str], None]) -> None:
    """Measure, unless that was done with the same settings."""
    if path.exists():
        before = read_json(path, "adapter", "tokens", "seed", "texts")
        same = (before["adapter"], before["tokens"], before["seed"]) == (
            engine.fingerprint,
            plan.perplexity_tokens,
            plan.seed,
        )
        if same and ("file" in before["texts"]) == (plan.text is not None):
            return
    run_perplexity(engine, plan.text, path, plan.perplexity_tokens, seed=plan.seed, say=say)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DeltaMemError(f"{path}: {error.strerror}; give the path of a file") from error


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
