"""Answers of MemoryAgentBench that a language model judges: LongMemEval (arXiv 2410.10813) and InfiniteBench summaries.

The prompts are ours, with the criteria of the two papers' own.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from ..errors import DeltaMemError
from .contract import Scores
from .metrics import sentences

_RULES = {
    "": "The reply is right if it contains the right answer or says the same, or gives all the steps that lead to it. "
    "It is wrong if it gives a part of what is asked for alone.",
    "temporal-reasoning": "The reply is right if it contains the right answer or says the same. It is wrong if it "
    "gives a part alone. A number of days, weeks or months that is off by one is right.",
    "knowledge-update": "The reply is right if it gives the right answer as what holds now; it may mention earlier "
    "values beside it.",
    "single-session-preference": "What is given as right answer is a rubric: what a reply that suits this user looks "
    "like. The reply is right if it recalls and uses what the user said of themself; it need not meet every point.",
    "abstention": "The question cannot be answered from the conversations; the right answer says why. The reply is "
    "right if it sees that: it says that the information is missing or incomplete, or that something else is known.",
}
RULES = _RULES | dict.fromkeys(("single-session-user", "single-session-assistant", "multi-session"), _RULES[""])
"""Type of a LongMemEval question -> when an answer is right; "" where the type is not given."""


class ChatModel(Protocol):
    """Any LangChain chat model; for figures that can be compared, at temperature 0."""

    def invoke(self, input: Any, /) -> Any:
        """One message for a prompt."""


class Judge:
    """Scores by a chat model.

    Raises (all methods):
        DeltaMemError: a reply that is not of the form that was asked for.
    """

    def __init__(self, model: ChatModel) -> None:
        self.model = model

    def answer(self, question: str, answers: Sequence[str], reply: str, kind: str | None, id: str | None) -> Scores:
        """``judge_accuracy``: 1 if a LongMemEval answer is right.

        Args:
            kind: the question's type, a key of :data:`RULES`.
            id: its id; one with ``_abs`` has no answer in what was told.

        Raises:
            DeltaMemError: an unknown type.
        """
        rule = "abstention" if id and "_abs" in id else kind or ""
        if rule not in RULES:
            raise DeltaMemError(f"unknown type of question {rule!r}; known are {sorted(RULES)}")
        said = self._ask(
            f"Judge a reply to a question about earlier conversations.\n{RULES[rule]}\n\nQuestion: {question}\n"
            f"Right answer: {' or '.join(answers)}\nReply: {reply}\n\nIs the reply right? Say yes or no, nothing else."
        )
        found = re.match(r"\W*(yes|no)\b", said, re.IGNORECASE)
        if not found:
            raise DeltaMemError(f"the judge was to say yes or no and said {said!r}; use another model as judge")
        return {"judge_accuracy": float(found[1].lower() == "yes")}

    def summary(self, keypoints: Sequence[str], gold: str, summary: str) -> Scores:
        """``judge_f1`` of a summary, and what it is made of.

        ``judge_recall``: share of the key points that the summary states; ``judge_precision``: share of its sentences
        that the expert's summary bears out; ``judge_fluency``: 1 if it is coherent text without repetition; F1 is that
        of recall and precision, times fluency.

        Raises:
            DeltaMemError: there are no key points.
        """
        if not keypoints:
            raise DeltaMemError("a summary is judged by key points: the row has none in metadata.keypoints")
        written = [sentence.strip() for sentence in sentences(summary) if sentence.strip()]
        if not written:
            return dict.fromkeys(("judge_f1", "judge_recall", "judge_precision", "judge_fluency"), 0.0)
        fluency = self._fluency(summary)
        recall = self._share("key points that the summary states", keypoints, f"Summary:\n{summary}")
        precision = self._share(
            "sentences that the expert's summary bears out", written, f"The expert's summary:\n{gold}"
        )
        f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
        return {
            "judge_f1": fluency * f1,
            "judge_recall": recall,
            "judge_precision": precision,
            "judge_fluency": fluency,
        }

    def _fluency(self, summary: str) -> float:
        said = self._json(
            "Is this summary fluent: coherent, whole sentences, and not the same text again and again? An end that is "
            f'cut off is no fault.\n\nSummary:\n{summary}\n\nReply with JSON alone: {{"fluent": true or false}}.',
            "fluent",
        )
        if not isinstance(said, bool):
            raise DeltaMemError(f"the judge was to give true or false and gave {said!r}; use another model as judge")
        return float(said)

    def _share(self, what: str, items: Sequence[str], text: str) -> float:
        numbered = "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
        said = self._json(
            f'{text}\n\nNumbered items:\n{numbered}\n\nWhich of them are {what}? Reply with JSON alone: {{"numbers": '
            "[...]}, the list of their numbers; an item counts only if all of it does.",
            "numbers",
        )
        if not isinstance(said, list) or any(n not in range(1, len(items) + 1) for n in said):
            raise DeltaMemError(
                f"the judge was to list numbers from 1 to {len(items)} and gave {said!r}; use another model as judge"
            )
        return len(set(said)) / len(items)

    def _json(self, prompt: str, key: str) -> Any:
        said = self._ask(prompt)
        found = re.search(r"\{[^{}]*\}", said)
        try:
            return json.loads(found[0] if found else said)[key]
        except (ValueError, KeyError, TypeError) as error:
            raise DeltaMemError(
                f"the judge was to reply with JSON that has {key!r} and said {said!r}; use another model as judge"
            ) from error

    def _ask(self, prompt: str) -> str:
        return str(self.model.invoke(prompt).text)
