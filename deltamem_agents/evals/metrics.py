"""Metrics of short answers, as MemoryAgentBench counts them (arXiv 2507.05257; they go back to SQuAD and HELMET).

Every metric is the best over the right answers and lies between 0 and 1.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from ..errors import DeltaMemError
from .contract import Scores

CLOSED = frozenset({"yes", "no", "noanswer"})  # half of such an answer is none
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SENTENCE = re.compile(r"\n+|[.!?…]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\sa-z])|[。！？]+[”’]*\s*")


def require(module: str, what: str) -> Any:
    """Import an optional library. DeltaMemError: it is not installed; the message says what installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise DeltaMemError(f'{what} needs {library} ({error}): pip install "deltamem-agents[evals]"') from error


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the; one space between words."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normalised texts are the same."""
    return _best(prediction, answers, lambda said, gold: float(normalise(said) == normalise(gold)))


def substring_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if a right answer, normalised, stands anywhere in the normalised prediction; one of articles alone always."""
    return _best(prediction, answers, lambda said, gold: float(normalise(gold) in normalise(said)))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words in common; 0 where either is yes, no or noanswer and the other is not the same."""
    return _best(prediction, answers, _f1)


def rouge(prediction: str, answers: Sequence[str]) -> Scores:
    """``rougeL_f1``, ``rougeL_recall``, ``rougeLsum_f1``, ``rougeLsum_recall``, of stems (the library rouge_score).

    Raises:
        DeltaMemError: rouge_score is not installed.
    """
    found: dict[str, list[float]] = {}
    for gold in _some(answers):
        for name, score in _rouge_scorer().score(gold, prediction).items():
            found.setdefault(f"{name}_f1", []).append(score.fmeasure)
            found.setdefault(f"{name}_recall", []).append(score.recall)
    return {name: float(max(scores)) for name, scores in found.items()}


def answer_metrics(prediction: str, answers: Sequence[str]) -> Scores:
    """All of the above, of the text as it stands."""
    return {
        "exact_match": exact_match(prediction, answers),
        "f1": f1(prediction, answers),
        "substring_exact_match": substring_exact_match(prediction, answers),
        **rouge(prediction, answers),
    }


def best_metrics(prediction: str, answers: Sequence[str]) -> Scores:
    """:func:`answer_metrics` of the whole text or of :func:`parse_answer`, whichever is better, each by itself."""
    whole = answer_metrics(prediction, answers)
    parsed = answer_metrics(parse_answer(prediction), answers)
    return {name: max(whole[name], parsed[name]) for name in whole}


def parse_answer(text: str, prefixes: Sequence[str] = ("Answer:",)) -> str:
    """What stands behind the first of ``prefixes`` (in any case) up to its line's end; without one, the first line."""
    found = re.search(f"(?:{'|'.join(map(re.escape, prefixes))})(.*)", text, re.IGNORECASE)
    return found[1].strip() if found else text.strip().partition("\n")[0].strip()


def all_inside(prediction: str, answers: Sequence[str]) -> float:
    """1 if every answer stands in the prediction, in any case."""
    return float(share_inside(prediction, answers) == 1.0)


def share_inside(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand in the prediction, in any case."""
    said = prediction.lower()
    return sum(gold.lower() in said for gold in _some(answers)) / len(answers)


def recall_at(predicted: Sequence[Any], right: Sequence[Any], k: int) -> float:
    """Share of the right items that are among the first ``k`` predicted."""
    wanted = set(_some(right))
    return len(wanted & set(predicted[:k])) / len(wanted)


def overlap_f1(said: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two lists of words, each word as often as it stands in both; 0 if they have none in common."""
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold)) if common else 0.0


def sentences(text: str) -> list[str]:
    """Sentences of a text with the white space behind them: joined, they are the text again.

    A sentence ends at a line's end, or at . ! ? … before white space and anything but a small letter.
    """
    found, start = [], 0
    for end in _SENTENCE.finditer(text):
        found.append(text[start : end.end()])
        start = end.end()
    return [*found, text[start:]] if start < len(text) else found


def _f1(prediction: str, gold: str) -> float:
    said, right = normalise(prediction), normalise(gold)
    if said != right and (said in CLOSED or right in CLOSED):
        return 0.0
    return overlap_f1(said.split(), right.split())


def _best(prediction: str, answers: Sequence[str], metric: Callable[[str, str], float]) -> float:
    return max(metric(prediction, gold) for gold in _some(answers))


def _some(answers: Sequence[Any]) -> Sequence[Any]:
    if isinstance(answers, str) or not answers:
        raise DeltaMemError(f"answers are a list with at least one right answer, not {answers!r}")
    return answers


@cache
def _rouge_scorer() -> Any:
    module = require("rouge_score.rouge_scorer", "ROUGE")
    return module.RougeScorer(["rougeL", "rougeLsum"], use_stemmer=True)
