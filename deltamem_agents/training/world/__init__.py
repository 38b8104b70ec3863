"""The world to learn in: a seeded generator of sessions of a project-operations assistant.

facts.py  the kinds of fact and how they are said      tasks.py  plans, reports and questions of progress
tools.py  tools, calls and results                     talk.py   small talk
session.py  one session                                questions.py  what is asked of it
source.py  random sessions for training              life.py  sessions of one agent that follow each other
"""

from ...progress import plan_text, report_text
from .life import Life
from .questions import Question, fact_questions, never_told, task_questions, without_memory
from .session import FACTS, TASK, UNKNOWN, Session, Spec, new_session
from .source import other_text, rng_for, world_dialogues, world_record, world_records
from .tools import TOOLS

__all__ = [
    "FACTS",
    "TASK",
    "TOOLS",
    "UNKNOWN",
    "Life",
    "Question",
    "Session",
    "Spec",
    "fact_questions",
    "never_told",
    "new_session",
    "other_text",
    "plan_text",
    "report_text",
    "rng_for",
    "task_questions",
    "without_memory",
    "world_dialogues",
    "world_record",
    "world_records",
]
