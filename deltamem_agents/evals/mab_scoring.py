"""How each data set of MemoryAgentBench is asked and scored (arXiv 2507.05257).

Lengths of answers and metrics are those of the benchmark; the wording of the prompts is ours, so figures compare with
published ones no closer than two prompts of the same content do.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeltaMemError
from .contract import Scores
from .metrics import all_inside, answer_metrics, best_metrics, parse_answer, recall_at, share_inside

TOP = (1, 5, 10)  # recall@k of recommendations


@dataclass(frozen=True)
class Kind:
    """One data set, or several that differ in length.

    Attributes:
        prefix: how the sources begin.
        max_tokens: longest answer, in tokens.
        headline: the metric that counts; for a judged kind the one that counts with a judge.
        prompt: the user message; {question}, {date} (a line, or empty) and {demo} are filled in.
        unjudged: for a judged kind the metric that counts without a judge; empty: no judge is needed.
    """

    prefix: str
    max_tokens: int
    headline: str
    prompt: str
    unjudged: str = ""


KINDS: tuple[Kind, ...] = (
    Kind(
        "eventqa_",
        40,
        "eventqa_recall",
        "From the book that you were told, solve this task.\n\n{question}\n\n"
        "Reply with the text of the one event that happens next, copied from the choices, and with nothing else.",
    ),
    Kind(
        "longmemeval_",
        50,
        "judge_accuracy",
        "You were told earlier conversations between a user and you. Answer the user's question from them, as "
        "briefly as possible, with a short phrase if that is enough.\n\n{date}{question}",
        unjudged="f1",
    ),
    Kind(
        "ruler_qa",
        50,
        "substring_exact_match",
        "Answer the question from the documents that you were told. Reply with the answer alone: a name, a date or "
        "a short phrase.\n\nQuestion: {question}\nAnswer:",
    ),
    Kind(
        "ruler_niah_",
        128,  # RULER's own length for this task
        "ruler_recall",
        "Special values were hidden in the text that you were told. Name every value that is asked for, and nothing "
        "else.\n\nQuestion: {question}\nAnswer:",
    ),
    Kind(
        "factconsolidation_",
        10,
        "substring_exact_match",
        "You keep a pool of numbered facts, which you were told. Where facts contradict each other, the one with the "
        "larger number is newer and holds. Answer from the pool alone, even where it is at odds with what you know "
        "of the world; a question may join several facts. Reply with the name or short phrase alone.\n\n"
        "Question: {question}\nAnswer:",
    ),
    Kind(
        "detective_qa",
        2000,
        "exact_match",
        "Answer the question about the detective story that you were told. Reason from its clues, then end with a "
        'line that begins with "Answer:" and repeats the right choice exactly as it is written.\n\n{question}',
    ),
    Kind(
        "infbench_sum",
        1200,
        "judge_f1",
        "Write a summary of the book that you were told, of 1,000 to 1,200 words: plot and characters alone, no "
        "themes, no background, no comment.\n\n{demo}{question}\n\nSummary:",
        unjudged="rougeLsum_f1",
    ),
    Kind(
        "icl_",
        20,
        "exact_match",
        "You were told labelled examples: texts, each with the number of its label. Give the number of the label "
        'that fits this text, in the form "label: <number>" and with nothing else.\n\nText: {question}',
    ),
    Kind(
        "recsys_",
        300,
        "recall@5",
        "You recommend films. From the dialogues that you were told you know what people like. Recommend 20 films "
        "to the user of this dialogue, the best first, as a numbered list with one title a line and nothing else."
        "\n\n{question}",
    ),
    Kind(
        "world_",  # rows that world_mab.py writes
        32,
        "exact_match",
        "{question}",
    ),
)


def kind_of(source: str) -> Kind:
    """The kind of a ``metadata.source``. DeltaMemError: none is known."""
    for kind in KINDS:
        if source.startswith(kind.prefix):
            return kind
    known = ", ".join(f"{kind.prefix}*" for kind in KINDS)
    raise DeltaMemError(f"unknown source {source!r}; known are {known}")


def prompt(kind: Kind, question: str, date: str = "", demo: str = "") -> str:
    """The user message that asks. ``date``: the day of the question, told unless the question names it already."""
    told = f"Today is {date}.\n" if date and date not in question else ""
    example = f"An example of such a summary:\n{demo}\n\n" if demo else ""
    return kind.prompt.format(question=question, date=told, demo=example)


def score(kind: Kind, prediction: str, answers: Sequence[str], entities: "Entities | None" = None) -> Scores:
    """All metrics that need no judge, each 0 to 1. ``entities``: for recommendations alone.

    Raises:
        DeltaMemError: recommendations without ``entities``; rouge_score is not installed.
    """
    if kind.prefix == "recsys_":
        if entities is None:
            raise DeltaMemError("recommendations are scored by entity2id.json: give its path as entities=")
        predicted = entities.recommended(prediction)
        return {f"recall@{k}": recall_at(predicted, answers, k) for k in TOP}
    if kind.prefix == "icl_":
        return answer_metrics(parse_answer(prediction, ("label:", "Answer:")), answers)
    if kind.prefix == "eventqa_":
        parsed = answer_metrics(parse_answer(prediction), answers)
        return parsed | {"eventqa_recall": all_inside(prediction, answers)}
    if kind.prefix == "ruler_niah_":
        return best_metrics(prediction, answers) | {"ruler_recall": share_inside(prediction, answers)}
    return best_metrics(prediction, answers)


class Entities:
    """The films that can be recommended: entity2id.json of ReDial, {name or DBpedia address: number}.

    Raises:
        DeltaMemError: the file is missing or is no such table.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DeltaMemError(
                f"entities {path}: {error.strerror or error}; give the path of the entity2id.json that belongs to the "
                "recommendation data of MemoryAgentBench"
            ) from error
        except ValueError as error:
            raise DeltaMemError(f"entities {path}: not JSON ({error}); download entity2id.json again") from error
        if not isinstance(table, dict) or not table:
            raise DeltaMemError(f"entities {path}: expected an object of names and numbers, as in entity2id.json")
        self.ids = [str(number) for number in table.values()]
        self.names = [entity_name(name) for name in table]
        self._clean = _Spelt([clean_title(name) for name in self.names])
        self._full = _Spelt([name.lower() for name in self.names])
        self.nearest: Callable[[str], str] = lru_cache(maxsize=65_536)(self._nearest)

    def recommended(self, text: str) -> list[str]:
        """Ids of the first ten items of a numbered list, the best first, each id once."""
        ids = dict.fromkeys(self.nearest(item) for item in listed(text)[: max(TOP)])
        return list(ids)

    def _nearest(self, item: str) -> str:
        closest = self._clean.nearest(clean_title(item))
        return self.ids[closest[np.argmin(self._full.distances(item.lower(), closest))]]


def listed(text: str) -> list[str]:
    """Items of a numbered or bulleted list, without their numbers; lines that are no items are passed over.

    A text without any item is read as a list of lines.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [re.match(r"(?:\(?\d+\s*[.):]|[-*•])\s*(.+)", line) for line in lines]
    return [item[1].strip().strip("*\"'") for item in found if item] or lines


def clean_title(text: str) -> str:
    """A title in lower case, without what stands in parentheses; one space between words."""
    return " ".join(re.sub(r"\([^)]*\)", " ", text).lower().split())


def entity_name(key: str) -> str:
    """The title in ``<http://dbpedia.org/resource/A_Title_(1999_film)>``; any other key is a title already."""
    address = re.fullmatch(r"<\w+://[^/]*/(?:resource/)?(.+)>", key)
    return address[1].replace("_", " ") if address else key


class _Spelt:
    """Many names, ready for edit distances to all of them at once: libraries for one pair take seconds here."""

    def __init__(self, names: Sequence[str]) -> None:
        self.lengths = np.array([len(name) for name in names])
        self.letters = np.zeros((len(names), int(self.lengths.max())), dtype=np.int32)
        for row, name in enumerate(names):
            self.letters[row, : len(name)] = [ord(letter) for letter in name]

    def nearest(self, text: str) -> "np.ndarray[Any, Any]":
        """Numbers of the names with the smallest edit distance to ``text``, in order."""
        apart = np.abs(self.lengths - len(text))  # no distance is smaller
        within = max(2, int(apart.min()))
        while True:
            rows = np.flatnonzero(apart <= within)
            distances = self.distances(text, rows)
            if distances.min() <= within or len(rows) == len(apart):
                return rows[distances == distances.min()]
            within *= 2

    def distances(self, text: str, rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Levenshtein distance of ``text`` to the names ``rows``, (rows,)."""
        lengths = self.lengths[rows]
        letters = self.letters[rows, : lengths.max()]
        columns = np.arange(letters.shape[1] + 1, dtype=np.int16)
        row = np.tile(columns, (len(rows), 1))
        for letter in text:
            new = row + np.int16(1)
            np.minimum(new[:, 1:], row[:, :-1] + (letters != ord(letter)), out=new[:, 1:])
            row = np.minimum.accumulate(new - columns, axis=1) + columns
        return row[np.arange(len(rows)), lengths]
