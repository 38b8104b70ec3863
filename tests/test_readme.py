"""The README's code runs, and its table is what was measured."""

import json
import os
import re
from pathlib import Path

import pytest
import warm

from deltamem_agents.evals.report import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "adapters" / "worldops-msw" / "results.json").read_text(encoding="utf-8"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number: int, tmp_path: Path) -> None:
    env = os.environ | {"DELTAMEM_STORE": str(tmp_path / "memory.db")}
    done = warm.python("-c", BLOCKS[number], env=env)
    assert done.returncode == 0, done.stderr
    promised = re.findall(r'print\(.*?#((?: "[^"]+",?)+)', BLOCKS[number])
    wanted = [value for group in promised for value in re.findall(r'"([^"]+)"', group)]
    assert wanted and done.stdout.splitlines() == wanted


@pytest.mark.parametrize("page", ["chat-model"])
def test_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    """All blocks of a page in one process, one after the other; what is printed begins the comments beside it."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text("utf-8"), re.DOTALL))
    done = warm.python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    said = done.stdout.splitlines()
    assert promised and len(said) == len(promised)
    assert all(comment.startswith(line) for line, comment in zip(said, promised, strict=True)), said


@pytest.mark.parametrize("page", ["README.md", "adapters/worldops-msw/README.md"])
def test_tables_are_the_results(page: str) -> None:
    assert markdown(RESULTS) in (ROOT / page).read_text(encoding="utf-8")


def test_results_are_of_the_shipped_weights() -> None:
    from deltamem_agents.engine import load_engine

    assert RESULTS["fingerprint"] == load_engine().fingerprint
    assert RESULTS["questions"] >= 1000
    assert all(cell["facts_bit_identical"] for cell in RESULTS["cells"].values() if "facts_bit_identical" in cell)
