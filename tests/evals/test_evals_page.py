"""The page about evaluation is what its data say."""

import re
import shutil
from pathlib import Path

from deltamem_agents.engine import Engine
from deltamem_agents.evals.report import render
from deltamem_agents.evals.report.data import load

ROOT = Path(__file__).parents[2]
DATA = ROOT / "benchmarks" / "results" / "evaluation"


def test_the_page_is_the_report_of_its_data(tmp_path: Path) -> None:
    made = render(shutil.copytree(DATA, tmp_path / "evaluation")).read_text(encoding="utf-8")
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert page == re.sub(r"(!\[[^\]]*\]\()", r"\1../benchmarks/results/evaluation/", made)


def test_the_report_is_of_the_shipped_weights(default_engine: Engine) -> None:
    assert load(DATA).settings["fingerprint"] == default_engine.fingerprint
