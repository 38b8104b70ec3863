"""MemoryAgentBench by its own harness: its loop, templates, chunks and metrics, with our agent in it.

    git clone https://github.com/HUST-AI-HYZ/MemoryAgentBench && pip install -r MemoryAgentBench/requirements.txt
    deltamem eval mab-harness --harness-root MemoryAgentBench --agent-config embedded \\
        --dataset-config configs/data_conf/….yaml --max-test-queries 10

Nothing of the checkout is copied or changed. Its ``main.py`` runs in a process of its own, in its folder, where
``from agent import AgentWrapper`` gives harness_agent.py's class. What it writes (``output_dir``, ``agents/``) lies in
the checkout. A run that ended early goes on where it was when it is started again; what was scored keeps its score.
Where requirements.txt pins other versions than this library needs, install this library after it.
"""

import argparse
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from ..errors import DeltaMemError
from .harness_agent import AgentOptions, AgentWrapper

REPOSITORY = "https://github.com/HUST-AI-HYZ/MemoryAgentBench"
CONFIGS = Path(__file__).parent / "harness_configs"
PARTS = ("main.py", "initialization.py", "utils/templates.py")  # what is used of a checkout


@dataclass(frozen=True)
class HarnessRun:
    """What a run left.

    Attributes:
        results: the harness' own file: configurations, every query with its output and metrics, averages.
        queries: how many were answered, earlier runs' included.
        averages: name of a metric -> mean; scores 0 to 100, lengths in tokens, times in seconds.
    """

    results: Path
    queries: int
    averages: Mapping[str, float]


def agent_configs() -> dict[str, Path]:
    """The agent configurations that come with the package: name -> YAML file."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def run_harness(
    harness_root: str | Path,
    agent_config: str | Path,
    dataset_config: str | Path,
    *,
    force: bool = False,
    max_test_queries: int | None = None,
    chunk_size: int | None = None,
) -> HarnessRun:
    """Run the harness of a checkout; it prints as it goes.

    Args:
        harness_root: the checkout.
        agent_config: name of :func:`agent_configs`, or a YAML file. Relative paths in it count from the checkout.
        dataset_config: a YAML file; a relative path counts from here, else from the checkout.
        force: ask everything again. Agents that are there are loaded, not told again (remove ``agents/`` for that).
        max_test_queries: ask only so many, over all contexts.
        chunk_size: tokens of a chunk, in the place of the dataset's.

    Raises:
        DeltaMemError: no checkout, a wrong configuration, a library that the harness lacks, results or agents that
            other configurations made, a query that does not fit into the window; or the harness ended with an error.
    """
    root = Path(harness_root).expanduser().resolve()
    if missing := [part for part in PARTS if not (root / part).is_file()]:
        raise DeltaMemError(
            f"{root} is no checkout of MemoryAgentBench ({missing[0]} is missing): git clone {REPOSITORY}"
        )
    agent = _find(agent_configs().get(str(agent_config), agent_config), root, f"or a name: {list(agent_configs())}")
    dataset = _find(dataset_config, root, "as the files in its configs/data_conf")
    AgentOptions.read(_mapping(agent))
    _mapping(dataset)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", __name__, str(root), str(agent), str(dataset), str(report)]
        command += ["--force"] if force else []
        command += [] if max_test_queries is None else ["--max-test-queries", str(max_test_queries)]
        command += [] if chunk_size is None else ["--chunk-size", str(chunk_size)]
        code = subprocess.run(command).returncode
        if not report.is_file():
            raise DeltaMemError(
                f"the harness ended with code {code}, for the reason that it printed; started again, it goes on"
            )
        said = json.loads(report.read_text("utf-8"))
    if "error" in said:
        raise DeltaMemError(said["error"])
    results = Path(said["results"])
    if not results.is_file():
        raise DeltaMemError(f"the harness asked nothing, so there is no {results}: is the dataset empty?")
    document = json.loads(results.read_text("utf-8"))
    return HarnessRun(results, len(document["data"]), document["averaged_metrics"])


def _find(path: str | Path, root: Path, others: str) -> Path:
    given = Path(path).expanduser()
    found = next((place for place in (given.resolve(), root / given) if place.is_file()), None)
    if found is None:
        raise DeltaMemError(f"no config {given} here or in {root}: name a YAML file, {others}")
    return found


def _mapping(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DeltaMemError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise DeltaMemError(f"{path} must hold a mapping of keys to values")
    return data


# What runs in the process of the harness


def _play(root: Path, agent: Path, dataset: Path, options: argparse.Namespace) -> Path:
    """Run main.py in this process, which must be one for it alone; returns the path of the results."""
    if sys.path[0] in ("", os.getcwd()):  # -m put it there, and a utils.py in it would hide the harness' own
        del sys.path[0]
    os.chdir(root)
    sys.path.insert(0, str(root))
    ours = ModuleType("agent")
    ours.AgentWrapper = AgentWrapper  # type: ignore[attr-defined]
    sys.modules["agent"] = ours
    arguments = ["--agent_config", str(agent), "--dataset_config", str(dataset)]
    arguments += ["--force"] if options.force else []
    arguments += ["--max_test_queries_ablation", str(options.max_test_queries)]
    arguments += ["--chunk_size_ablation", str(options.chunk_size)]
    initialization = importlib.import_module("initialization")
    agent_config, dataset_config, output = initialization.setup_configs_and_directories(
        argparse.Namespace(
            agent_config=str(agent),
            dataset_config=str(dataset),
            chunk_size_ablation=options.chunk_size,
            max_test_queries_ablation=options.max_test_queries,
            force=options.force,
        )
    )
    results = root / output
    if not options.force and results.is_file():
        configs = {"agent_config": agent_config, "dataset_config": dataset_config}
        _keep_scores(initialization, _check_same(results, configs))
    sys.argv = [str(root / "main.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return results


def _keep_scores(initialization: ModuleType, document: Mapping[str, Any]) -> None:
    """Have a run that goes on keep the earlier rows and scores as they were written.

    The harness would score them again, by the first of the right answers alone, whose letters some of its metrics then
    take for answers.
    """

    def keep(output: Any, query: Any, answer: Any, config: Any, metrics: Any, results: Any, *_: Any) -> Any:
        number = len(results)
        for name, values in document["metrics"].items():
            metrics[name].append(values[number])
        results.append(document["data"][number])
        return metrics, results

    initialization.metrics_summarization = keep  # type: ignore[attr-defined]


def _check_same(results: Path, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The results so far. The harness goes on with them by their path, which names neither adapter nor chunk size."""
    remedy = "give another output_dir (and agent_name), or --force to ask everything again"
    try:
        document: dict[str, Any] = json.loads(results.read_text("utf-8"))
        before: dict[str, dict[str, Any]] = {name: dict(document[name]) for name in configs}
    except (ValueError, KeyError, TypeError) as error:
        raise DeltaMemError(f"{results} holds no whole results ({error!r}): {remedy}") from error
    for name, config in configs.items():
        old, new = ({k: v for k, v in c.items() if k != "max_test_queries"} for c in (before[name], config))
        if differing := sorted(k for k in {*old, *new} if old.get(k) != new.get(k)):
            key = differing[0]
            raise DeltaMemError(
                f"{results} was made with another {name}: {key} was {old.get(key)!r}, is {new.get(key)!r}; {remedy}"
            )
    return document


def _end_with_parent() -> None:
    """End this process within a second of the one that started it: started again, two would write the same agent."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """What :func:`run_harness` starts: plays the harness, and writes the path of the results, or the error, as JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}" if __spec__ else None)
    for name in ("root", "agent", "dataset", "report"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--max-test-queries", type=int, default=0)
    parser.add_argument("--chunk-size", type=int, default=0)
    options = parser.parse_args(arguments)
    _end_with_parent()
    try:
        said = {"results": str(_play(options.root, options.agent, options.dataset, options))}
    except DeltaMemError as error:
        said = {"error": str(error)}
    except ModuleNotFoundError as error:
        place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if place.is_relative_to(Path(__file__).parents[1]) and place != Path(__file__):
            raise
        said = {
            "error": f"the harness needs the module {error.name!r}, which is not installed beside {sys.executable}: "
            f"pip install -r {options.root / 'requirements.txt'}"
        }
    options.report.write_text(json.dumps(said), "utf-8")
    return 1 if "error" in said else 0


if __name__ == "__main__":
    sys.exit(main())
