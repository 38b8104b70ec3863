"""The paper's ablations on a backbone of our own: adapters that differ in one thing each, trained alike, asked alike.

    python -m deltamem_agents.evals.ablations --out runs/ablations --steps 600 --jobs 4 --time-limit 560

The folder then holds ``results.jsonl`` (a line for each finished run) and ``ablations.json`` (the document),
``recipes/``, ``logs/``, and a folder with weights and checkpoints for each run, named <variant>-seed<k>. Run again to
go on: runs in ``results.jsonl`` are not run again, even where their folders are gone. Runs are processes of their own.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..config import DEFAULT_ADAPTER
from ..errors import DeltaMemError
from ..training.history import HOW
from ..training.recipe import WORLD, Recipe, parse_changes, save_recipe
from .ablation_plan import Variant, base_recipe, groups_of, recipe_of, variants_of
from .ablation_report import plot, table
from .ablation_run import RESULTS, STOPPED, write_json
from .recall import check_writable

__all__ = ["plot", "run_ablations", "table"]
DOCUMENT, LINES, SETTINGS = "ablations.json", "results.jsonl", "settings.json"
GRACE = 15.0  # seconds after the time limit until a run that has not stopped is killed
POLL = 0.2
Key = tuple[str, int]


@dataclass
class _Job:
    key: Key
    folder: Path
    log: Path
    process: "subprocess.Popen[bytes]"


def run_ablations(
    recipe: Recipe,
    out: str | Path,
    *,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    steps: int | None = None,
    questions: int = 300,
    jobs: int = 1,
    time_limit: float | None = None,
    device: str | None = None,
    command: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train and measure what is missing in ``out``: all variants with the first seed, then with the next.

    Args:
        recipe: the base, as :func:`.ablation_plan.base_recipe` reads it.
        variants: names of :func:`.ablation_plan.variants_of`; None: all.
        seeds: each gives other first weights and other sessions to train on; the questions are always the same.
        steps: of training; None: those of the recipe. The learning rate falls to its end within them.
        questions: asked in each cell of :data:`.ablation_run.MEASURED`.
        jobs: runs at once. They share the device and its seconds, and the recipe's ``workers`` share the cores.
        time_limit: seconds. Runs under way then write their checkpoints; :data:`GRACE` later they are killed.
        device: "cpu", "cuda", …; default cuda where there is one.
        command: what was called, for the document.

    Returns:
        {"command", "recipe", "settings", "seeds", "groups": [asdict(Group)], "runs": [line], "missing":
        ["<variant>-seed<k>"]}; a line is {"variant"} and what :func:`.ablation_run.run_one` returns. Also written as
        ``ablations.json``.

    Raises:
        RecipeError: the recipe is no base.
        DeltaMemError: an unknown variant, nothing to run, numbers out of range, ``out`` belongs to other settings or
            cannot be written, or a run failed: its log is named, runs under way were finished, no others started.
        KeyboardInterrupt: Ctrl-C; runs under way were told, and write their checkpoints.
    """
    known, out = variants_of(recipe), Path(out)
    keys = _keys(known, variants, seeds)
    if questions < 1 or jobs < 1 or (steps is not None and steps < 1):
        raise DeltaMemError(f"steps {steps}, questions {questions}, jobs {jobs}: give at least 1 of each")
    recipe = _trained_for(recipe, steps, jobs)
    settings = _keep_settings(recipe, questions, out)
    runner = _Runner(recipe, out, known, questions, device, say)
    try:
        runner.run([key for key in keys if key not in read_lines(out)], jobs, time_limit)
    finally:
        runner.stop()
        document = {"command": command} | _document(recipe, settings, keys, read_lines(out))
        write_json(document, out / DOCUMENT)
    return document


def read_lines(out: Path) -> dict[Key, dict[str, Any]]:
    """The finished runs of a folder by (variant, seed). DeltaMemError: a line that is damaged."""
    path = out / LINES
    if not path.is_file():
        return {}
    found: dict[Key, dict[str, Any]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            found[line["variant"], line["seed"]] = line
        except (ValueError, TypeError, KeyError) as error:
            raise DeltaMemError(f"{path} line {number} is damaged ({error!r}): delete the line, run again") from error
    return found


def _keys(known: Mapping[str, Variant], variants: Sequence[str] | None, seeds: Sequence[int]) -> list[Key]:
    """The runs, in their order."""
    chosen = list(dict.fromkeys(known if variants is None else variants))
    if unknown := [name for name in chosen if name not in known]:
        raise DeltaMemError(f"unknown variant {unknown[0]!r}; known are {list(known)}")
    if not chosen or not seeds:
        raise DeltaMemError("nothing to run: give at least one variant and one seed")
    return [(name, seed) for seed in dict.fromkeys(seeds) for name in chosen]


def _trained_for(recipe: Recipe, steps: int | None, jobs: int) -> Recipe:
    """The recipe with its steps, and with the workers that one of ``jobs`` runs may have."""
    train = recipe.adapter.train
    workers = min(train.workers, max(1, (os.cpu_count() or 1) // jobs - 1))
    train = replace(train, steps=steps or train.steps, workers=workers)
    return replace(recipe, adapter=replace(recipe.adapter, train=train))


def _document(
    recipe: Recipe, settings: dict[str, Any], keys: Sequence[Key], lines: Mapping[Key, dict[str, Any]]
) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "settings": settings,
        "seeds": sorted({seed for _, seed in [*lines, *keys]}),
        "groups": json.loads(json.dumps([asdict(group) for group in groups_of(recipe)])),
        "runs": [lines[key] for key in sorted(lines)],
        "missing": [_name(key) for key in keys if key not in lines],
    }


class _Runner:
    """Runs as processes, and what they have found as lines."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        variants: dict[str, Variant],
        questions: int,
        device: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.out, self.variants, self.questions = recipe, out, variants, questions
        self.device, self.say = device, say
        self.running: list[_Job] = []
        self.failed: list[_Job] = []

    def run(self, keys: list[Key], jobs: int, time_limit: float | None) -> None:
        deadline = None if time_limit is None else time.monotonic() + time_limit
        waiting = list(keys)
        while waiting or self.running:
            left = None if deadline is None else deadline - time.monotonic()
            over = left is not None and left <= 0
            if over or self.failed:
                waiting.clear()
            if left is not None and left < -GRACE:
                return  # stop() kills what still runs
            while waiting and len(self.running) < jobs:
                self._start(waiting.pop(0), left)
            self._collect()
            time.sleep(POLL if self.running else 0)
        if self.failed:
            job = self.failed[0]
            said = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise DeltaMemError(
                f"run {_name(job.key)} failed: {said[-1] if said else 'it said nothing'}; see {job.log}"
            )

    def stop(self) -> None:
        """Ask the runs that are left to write their checkpoints, then kill those that do not end."""
        for job in self.running:
            job.process.send_signal(signal.SIGINT)
        end = time.monotonic() + GRACE / 3
        for job in self.running:
            try:
                job.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()
                self.say(f"killed {_name(job.key)}; it goes on from its last checkpoint")
        self.running.clear()

    def _start(self, key: Key, left: float | None) -> None:
        name, seed = key
        folder, recipe = self.out / _name(key), self.out / "recipes" / f"{_name(key)}.yaml"
        log = self.out / "logs" / f"{_name(key)}.log"
        save_recipe(recipe_of(self.recipe, self.variants[name], seed), recipe)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", f"{__package__}.ablation_run", str(recipe), "--out", str(folder)]
        command += ["--questions", str(self.questions)]
        command += [] if left is None else ["--time-limit", f"{left:.1f}"]
        command += [] if self.device is None else ["--device", self.device]
        with log.open("ab") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.running.append(_Job(key, folder, log, process))
        self.say(f"{_name(key)}: started")

    def _collect(self) -> None:
        """Take the runs that have ended."""
        for job in [job for job in self.running if job.process.poll() is not None]:
            self.running.remove(job)
            if job.process.returncode == STOPPED:
                self.say(f"{_name(job.key)}: stopped at the time limit; run again to go on")
            elif job.process.returncode:
                self.failed.append(job)
                self.say(f"{_name(job.key)}: failed; see {job.log}")
            else:
                line = {"variant": job.key[0]} | json.loads((job.folder / RESULTS).read_text(encoding="utf-8"))
                with (self.out / LINES).open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                self.say(f"{_name(job.key)}: recall {line['recall']:.3f}, {line['train_seconds']:.0f} s of training")


def _name(key: Key) -> str:
    return f"{key[0]}-seed{key[1]}"


def _keep_settings(recipe: Recipe, questions: int, out: Path) -> dict[str, Any]:
    """Write down what all runs of ``out`` share. DeltaMemError: it is a folder of runs that share something else."""
    train = {name: value for name, value in asdict(recipe.adapter.train).items() if name not in HOW}
    adapter = asdict(recipe.adapter) | {"train": train}
    settings = {
        "questions": questions,
        "data": WORLD if recipe.data == WORLD else _identity(recipe.data),
        "adapter": adapter,
    }
    settings["backbone"] = _identity(str(recipe.backbone.path))
    settings = json.loads(json.dumps(settings))
    path = out / SETTINGS
    check_writable(path)
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if differ := _differ(kept, settings):
            raise DeltaMemError(f"{out} holds runs of other settings ({', '.join(differ)}): give another --out")
    write_json(settings, path)
    return dict(settings)


def _differ(kept: Any, wanted: Any, name: str = "") -> list[str]:
    """Dotted names of the fields in which two nested mappings differ."""
    if not isinstance(kept, dict) or not isinstance(wanted, dict):
        return [] if kept == wanted else [name]
    names = sorted(kept.keys() | wanted.keys())
    return [odd for n in names for odd in _differ(kept.get(n), wanted.get(n), f"{name}.{n}" if name else n)]


def _identity(path: str) -> str:
    """A digest of a file, or of the weights in a folder; anything else stays as it is."""
    place = Path(path)
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place] if place.is_file() else []
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if files else path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--adapter", default=DEFAULT_ADAPTER, help="folder or name: its recipe and backbone are used")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="adapter.train.rows=32")
    parser.add_argument("--variants", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--time-limit", type=float, help="seconds; run again to go on")
    parser.add_argument("--device")
    args = parser.parse_args()
    options = {name: getattr(args, name) for name in "variants seeds steps questions jobs time_limit device".split()}
    options["command"] = shlex.join(["python", "-m", f"{__package__}.ablations", *sys.argv[1:]])
    try:
        document = run_ablations(base_recipe(args.adapter, parse_changes(args.set)), args.out, **options)
        print(table(document))
    except DeltaMemError as error:
        sys.exit(" ".join(str(error).split()))
    except KeyboardInterrupt:  # checkpoints are written
        sys.exit(130)


if __name__ == "__main__":
    main()
