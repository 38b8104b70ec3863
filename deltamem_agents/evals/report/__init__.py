"""One report of all evaluations: what is missing is run, then ``report.md`` is written from the files in the folder.

plan.py  what to run, and the command of each part      roster.py  agents by name      run.py  running it
data.py  reading the folder      *sections.py, tables.py, words.py, figures.py  the page      compare.py  two folders
recall_table.py  the table of :mod:`..recall`
"""

from .compare import compare
from .plan import Plan
from .recall_table import markdown
from .roster import AGENTS, make_agents
from .run import run_report, write_report
from .sections import render

__all__ = ["AGENTS", "Plan", "compare", "make_agents", "markdown", "render", "run_report", "write_report"]
