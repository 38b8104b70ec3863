"""LoCoMo: questions about very long conversations of two people (arXiv 2402.17753; locomo10.json of snap-research).

Everything is told turn by turn, as user messages routed to ``facts``: the agent listens to two people and is asked
about both. If one of them spoke in the assistant's role, the agent would take half of the facts for words of its own.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from ..errors import DeltaMemError
from .contract import Benchmark, Example, Message, Question, Scores
from .metrics import normalise, overlap_f1, require

CATEGORIES = {1: "multi_hop", 2: "temporal", 3: "open_domain", 4: "single_hop", 5: "adversarial"}
NOT_MENTIONED = "Not mentioned in the conversation"
MAX_TOKENS = 50
_ASK = (
    "Answer the question about the conversation that you were told, with a short phrase and, where possible, in the "
    "very words of the conversation.{hint}\n\nQuestion: {question}\nShort answer:"
)
_DATE_HINT = " The DATE of a conversation says when it took place: answer with an approximate date."
_CHOOSE = (
    "Answer the question about the conversation that you were told: choose the right one of two answers and reply with "
    "(a) or (b) alone.\n\nQuestion: {question}\n(a) {a}\n(b) {b}\nRight answer:"
)


class LoCoMo(Benchmark):
    """LoCoMo with the F1 of its own evaluation; the wording of the prompts is ours.

    One example a conversation, one message a turn. Categories: 1 multi-hop, 2 temporal, 3 open domain, 4 single hop,
    5 adversarial: the question names something that was never said and the agent chooses between a wrong answer and
    "not mentioned", in an order that ``seed`` draws.

    Args:
        source: path of locomo10.json, or a file of its form.
        categories: some of 1 to 5; None: all.
        max_examples: so many conversations; None: all.
        max_questions: so many questions of each conversation; None: all.
        seed: of the order of the two choices.
        accept_i_dont_know: in category 5, "I don't know." counts as well. Not a part of LoCoMo's protocol: the name in
            reports becomes "LoCoMo-idk".

    Raises:
        DeltaMemError: the file is missing or not of this form: file, sample and field are named; an unknown category.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        categories: Sequence[int] | None = None,
        max_examples: int | None = None,
        max_questions: int | None = None,
        seed: int = 0,
        accept_i_dont_know: bool = False,
    ) -> None:
        if unknown := [category for category in categories or () if category not in CATEGORIES]:
            raise DeltaMemError(f"unknown category {unknown[0]!r} of LoCoMo; known are {CATEGORIES}")
        self.name = "LoCoMo-idk" if accept_i_dont_know else "LoCoMo"
        self.source = Path(source)
        self.categories = tuple(categories or CATEGORIES)
        self.max_questions = max_questions
        self.seed = seed
        self.accept_i_dont_know = accept_i_dont_know
        self.samples = _load(self.source)[:max_examples]

    def examples(self) -> Iterator[Example]:
        """Each conversation, in the order of the file."""
        for sample in self.samples:
            questions = [
                self._question(f"{sample['sample_id']}/{i}", entry)
                for i, entry in enumerate(sample["qa"])
                if entry["category"] in self.categories
            ]
            yield Example(
                id=sample["sample_id"],
                messages=tuple(_turns(sample["conversation"])),
                questions=tuple(questions[: self.max_questions]),
                source="locomo",
                max_tokens=MAX_TOKENS,
            )

    def score(self, example: Example, question: Question, answer: str) -> Scores:
        """``f1``, by the rule of the question's category; in category 5 it is 0 or 1.

        Raises:
            DeltaMemError: nltk, for its stemmer, is not installed.
        """
        category = question.metadata["category"]
        if category == 5:
            return {"f1": self._adversarial(answer, question.metadata["choices"])}
        return {"f1": (multi_f1 if category == 1 else stemmed_f1)(answer, question.answers[0])}

    def headline(self, example: Example) -> str:
        """F1, everywhere."""
        return "f1"

    def _question(self, id: str, entry: dict[str, Any]) -> Question:
        category, text = entry["category"], entry["question"]
        metadata: dict[str, Any] = {
            "category": category,
            "question": text,
            "evidence": tuple(entry.get("evidence", ())),
        }
        if category == 5:
            a, b = Random(f"{self.seed}/{id}").sample([NOT_MENTIONED, str(entry["adversarial_answer"])], 2)
            metadata["choices"] = {"a": a, "b": b}
            asked, right = _CHOOSE.format(question=text, a=a, b=b), NOT_MENTIONED
        else:
            asked = _ASK.format(question=text, hint=_DATE_HINT if category == 2 else "")
            right = str(entry["answer"])
            right = right.partition(";")[0].strip() if category == 3 else right
        return Question(id, asked, (right,), CATEGORIES[category], metadata)

    def _adversarial(self, answer: str, choices: dict[str, str]) -> float:
        letter = re.fullmatch(r"\(?([ab])\)?\W*", answer.strip().lower())
        said = (choices[letter[1]] if letter else answer).lower()
        refused = ["no information available", "not mentioned"]
        if self.accept_i_dont_know:
            said, refused = said.replace("’", "'"), [*refused, "i don't know"]
        return float(any(phrase in said for phrase in refused))


def stemmed_f1(prediction: str, gold: str) -> float:
    """F1 of the stems in common, after lower case and without punctuation and the words a, an, the, and."""
    return overlap_f1(_stems(prediction), _stems(gold))


def multi_f1(prediction: str, gold: str) -> float:
    """Both are lists with commas: mean, over the right items, of the best :func:`stemmed_f1` of an item said."""
    said = prediction.split(",")
    right = gold.split(",")
    return sum(max(stemmed_f1(item, wanted) for item in said) for wanted in right) / len(right)


def _stems(text: str) -> list[str]:
    return [_stemmer().stem(word) for word in re.sub(r"\band\b", " ", normalise(text)).split()]


@cache
def _stemmer() -> Any:
    return require("nltk.stem", "LoCoMo's F1").PorterStemmer()


def _turns(conversation: dict[str, Any]) -> Iterator[Message]:
    for number in _sessions(conversation):
        date = conversation[f"session_{number}_date_time"]
        for turn in conversation[f"session_{number}"]:
            shared = f" and shared {turn['blip_caption']}." if turn.get("blip_caption") else ""
            content = f'DATE: {date}\n{turn["speaker"]} said, "{turn["text"]}"{shared}'
            yield {"role": "user", "content": content, "sub_state": "facts"}


def _sessions(conversation: dict[str, Any]) -> list[int]:
    found = (re.fullmatch(r"session_(\d+)", key) for key in conversation)
    return sorted(int(key[1]) for key in found if key)


def _load(path: Path) -> list[dict[str, Any]]:
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeltaMemError(
            f"LoCoMo {path}: {error.strerror or error}; locomo10.json is in the folder data of github.com/"
            "snap-research/locomo: give its path"
        ) from error
    except ValueError as error:
        raise DeltaMemError(f"LoCoMo {path}: not JSON ({error}); download locomo10.json again") from error
    if not isinstance(samples, list) or not samples:
        raise DeltaMemError(f"LoCoMo {path}: expected a list of samples, as in locomo10.json")
    for number, sample in enumerate(samples):
        for field, wanted in _faults(sample):
            raise DeltaMemError(f"LoCoMo {path}, sample {number}, {field}: expected {wanted}, as in locomo10.json")
    ids = Counter(sample["sample_id"] for sample in samples)
    if twice := [id for id, count in ids.items() if count > 1]:
        raise DeltaMemError(f"LoCoMo {path}: sample_id {twice[0]!r} stands there twice; each must be unique")
    return samples


def _faults(sample: Any) -> Iterator[tuple[str, str]]:
    """Field and what it should be, for all that is wrong with a sample."""
    if not isinstance(sample, dict) or not isinstance(sample.get("sample_id"), str):
        yield "sample_id", "a text"
        return
    conversation, asked = sample.get("conversation"), sample.get("qa")
    if not isinstance(conversation, dict) or not _sessions(conversation):
        yield "conversation", "an object with session_1"
        return
    for number in _sessions(conversation):
        if not isinstance(conversation.get(f"session_{number}_date_time"), str):
            yield f"conversation.session_{number}_date_time", "a text"
        turns = conversation[f"session_{number}"]
        if not isinstance(turns, list):
            yield f"conversation.session_{number}", "a list of turns"
            return
        whole = [
            isinstance(t, dict) and isinstance(t.get("speaker"), str) and isinstance(t.get("text"), str) for t in turns
        ]
        if False in whole:
            yield f"conversation.session_{number}[{whole.index(False)}]", "a turn with speaker and text"
    if not isinstance(asked, list):
        yield "qa", "a list"
        return
    for i, entry in enumerate(asked):
        category = entry.get("category") if isinstance(entry, dict) else None
        if not isinstance(category, int) or category not in CATEGORIES:
            yield f"qa[{i}].category", f"one of {list(CATEGORIES)}"
        elif not isinstance(entry.get("question"), str):
            yield f"qa[{i}].question", "a text"
        elif not isinstance(entry.get(key := "adversarial_answer" if category == 5 else "answer"), str | int | float):
            yield f"qa[{i}].{key}", "a text or a number"
