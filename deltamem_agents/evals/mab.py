"""MemoryAgentBench (arXiv 2507.05257), read, asked and scored here; its data stays where it is.

Rows are those of ai-hyz/MemoryAgentBench on the Hub: ``context`` (text), ``questions`` (texts), ``answers`` (for each
question the right ones), ``metadata`` (``source``, and lists parallel to the questions). Splits are competencies.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DeltaMemError
from .contract import Benchmark, Example, Question, Scores
from .foreign import identity
from .mab_judge import ChatModel, Judge
from .mab_scoring import Entities, Kind, kind_of, prompt, score
from .metrics import require, sentences

SPLITS = ("Accurate_Retrieval", "Test_Time_Learning", "Long_Range_Understanding", "Conflict_Resolution")
PARALLEL = ("qa_pair_ids", "question_ids", "question_types", "question_dates")
NOT_JUDGED = "_not_judged"


@dataclass(frozen=True)
class Row:
    """One row: a context and its questions. ``place``: file and number, for messages of errors."""

    place: str
    split: str
    number: int
    context: str
    questions: list[str]
    answers: list[list[str]]
    metadata: dict[str, Any]

    @property
    def source(self) -> str:
        """Which data set it is of."""
        return str(self.metadata["source"])


class MemoryAgentBench(Benchmark):
    """MemoryAgentBench in this library's own words of asking.

    A context is told as user messages, one a chunk: whole sentences of at most ``chunk_tokens`` tokens; sentences are
    those of :func:`.metrics.sentences`, where the benchmark's harness has nltk's. Nothing of a context is left out.

    Args:
        source: the Hub's id of the data set (that needs the library datasets), or a local file or folder: parquet or
            JSON Lines, each file named after its split, as in ``Accurate_Retrieval-00000-of-00001.parquet``.
        count_tokens: length of a text, in tokens of the agents' tokenizer.
        splits: some of :data:`SPLITS`; None: all that are there.
        sources: names of sources, or how they begin ("eventqa"); None: all.
        chunk_tokens: longest chunk, in tokens.
        max_examples: so many rows of each source; None: all.
        max_questions: so many questions of each row; None: all.
        judge: a LangChain chat model for what a model must judge (LongMemEval, summaries). Without it the metric that
            counts is f1 or rougeLsum_f1, under a name that ends in ``_not_judged``.
        entities: path of entity2id.json, for recommendations.

    Raises:
        DeltaMemError: a missing file or library, an unknown split. From :meth:`examples`: a row that is not of this
            form, named by file, row and column; an unknown source; recommendations without ``entities``.
    """

    name = "MemoryAgentBench"

    def __init__(
        self,
        source: str | Path,
        *,
        count_tokens: Callable[[str], int],
        splits: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
        chunk_tokens: int = 4096,
        max_examples: int | None = None,
        max_questions: int | None = None,
        judge: ChatModel | None = None,
        entities: str | Path | None = None,
    ) -> None:
        if unknown := [split for split in splits or () if split not in SPLITS]:
            raise DeltaMemError(f"unknown split {unknown[0]!r} of MemoryAgentBench; known are {list(SPLITS)}")
        self.source = source
        self.splits = tuple(splits or SPLITS)
        self.sources = tuple(sources) if sources is not None else ("",)
        self.count_tokens = count_tokens
        self.chunk_tokens = chunk_tokens
        self.max_examples = max_examples
        self.max_questions = max_questions
        self.judge = Judge(judge) if judge is not None else None
        self.scoring = {"judge": identity(judge)} if judge is not None else {}
        self.entities = Entities(entities) if entities is not None else None

    def examples(self) -> Iterator[Example]:
        """Each row in the order of the files; see :class:`.contract.Benchmark`."""
        taken: Counter[str] = Counter()
        found: set[str] = set()
        for row in read(self.source, self.splits):
            found.add(row.source)
            if not row.source.startswith(self.sources):
                continue
            if self.max_examples is not None and taken[row.source] >= self.max_examples:
                continue
            taken[row.source] += 1
            yield self._example(row)
        if not taken:
            raise DeltaMemError(
                f"{self.source}: no rows of splits {list(self.splits)} and sources {list(self.sources)}; its sources "
                f"are {sorted(found)}"
            )

    def score(self, example: Example, question: Question, answer: str) -> Scores:
        """Metrics of the benchmark's own evaluation; see :mod:`.mab_scoring` and :mod:`.mab_judge`."""
        kind = kind_of(example.source)
        scores = score(kind, answer, question.answers, self.entities)
        if not kind.unjudged:
            return scores
        if self.judge is None:
            return scores | {kind.unjudged + NOT_JUDGED: scores[kind.unjudged]}
        about = question.metadata
        if kind.headline == "judge_f1":
            return scores | self.judge.summary(about["keypoints"], question.answers[0], answer)
        return scores | self.judge.answer(
            about["question"], question.answers, answer, about["question_type"], about["question_id"]
        )

    def headline(self, example: Example) -> str:
        """The metric that the paper reports, or the one that stands in for it without a judge."""
        kind = kind_of(example.source)
        return kind.unjudged + NOT_JUDGED if kind.unjudged and self.judge is None else kind.headline

    def _example(self, row: Row) -> Example:
        try:
            kind = kind_of(row.source)
        except DeltaMemError as error:
            raise DeltaMemError(f"{row.place}, column metadata: {error}") from error
        if kind.prefix == "recsys_" and self.entities is None:
            raise DeltaMemError(
                f"{row.place}: {row.source} is scored by entity2id.json: give its path as entities=, or leave the "
                "source out with sources="
            )
        if kind.unjudged and self.judge is None:
            warnings.warn(f"{row.source} is not judged: {kind.unjudged} counts; give judge=", stacklevel=3)
        return Example(
            id=f"{row.split}/{row.number}",
            messages=tuple(
                {"role": "user", "content": chunk}
                for chunk in chunks(row.context, self.chunk_tokens, self.count_tokens)
            ),
            questions=tuple(_questions(row, kind))[: self.max_questions],
            source=row.source,
            competency=row.split,
            max_tokens=kind.max_tokens,
        )


def chunks(text: str, most: int, count: Callable[[str], int]) -> list[str]:
    """Whole sentences packed into chunks of at most ``most`` tokens; joined, the chunks are the text.

    A sentence that is longer than a chunk is cut in halves, between words where there are any.

    Raises:
        DeltaMemError: ``most`` is too small for a single character.
    """
    packed: list[str] = []
    size = 0
    for piece, tokens in (part for sentence in sentences(text) for part in _pieces(sentence, most, count)):
        if packed and size + tokens <= most:
            packed[-1] += piece
            size += tokens
        else:
            packed.append(piece)
            size = tokens
    return packed


def read(source: str | Path, splits: Sequence[str] = SPLITS) -> Iterator[Row]:
    """Rows of the data set, checked; the arguments and errors are those of :class:`MemoryAgentBench`."""
    path = Path(source)
    if not path.exists():
        if path.suffix in _READERS or path.is_absolute() or str(source).count("/") != 1:
            raise DeltaMemError(
                f"no file or folder {source}; give one, or the Hub's id of the data set (ai-hyz/MemoryAgentBench)"
            )
        datasets = require("datasets", f"the data set {source}")
        for split in splits:
            try:
                rows = datasets.load_dataset(str(source), split=split)
            except (OSError, ValueError) as error:
                raise DeltaMemError(
                    f"the Hub's data set {source}, split {split}, cannot be loaded: {error}; check the id and the "
                    "connection, or give a folder with its parquet files"
                ) from error
            yield from (checked(f"{source}, {split}, row {i}", split, i, row) for i, row in enumerate(rows))
        return
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _READERS)
    if not files or any(file.suffix not in _READERS for file in files):
        raise DeltaMemError(f"{source}: MemoryAgentBench is read from .parquet and .jsonl files; there are none")
    numbers: Counter[str] = Counter()
    for file in files:
        named = [name for name in SPLITS if file.name.startswith(name)]
        if not named:
            raise DeltaMemError(f"{file}: of which split is it? Its name must begin with one of {list(SPLITS)}")
        for split in set(named).intersection(splits):
            for i, row in enumerate(_READERS[file.suffix](file)):
                yield checked(f"{file}, row {i}", split, numbers[split], row)
                numbers[split] += 1


def checked(place: str, split: str, number: int, row: Any) -> Row:
    """A row of the form that the module says. DeltaMemError: it is not; the message begins with ``place``."""

    def ensure(good: bool, column: str, wanted: str) -> None:
        if not good:
            raise DeltaMemError(f"{place}, column {column}: expected {wanted}; get the data set's files again")

    ensure(isinstance(row, dict), "context", "an object with the four columns")
    context, questions, answers, metadata = (row.get(c) for c in ("context", "questions", "answers", "metadata"))
    ensure(isinstance(context, str) and bool(context.strip()), "context", "a text")
    ensure(_texts(questions), "questions", "a list of texts, not empty")
    ensure(isinstance(answers, list) and all(map(_texts, answers)), "answers", "a list of lists of texts, none empty")
    ensure(len(answers) == len(questions), "answers", f"{len(questions)} lists, as many as questions: {len(answers)}")
    ensure(isinstance(metadata, dict) and isinstance(metadata.get("source"), str), "metadata", "an object with source")
    for name in PARALLEL:
        given = metadata.get(name)
        good = not given or (isinstance(given, list) and len(given) == len(questions))
        ensure(good, f"metadata.{name}", f"null or a list of {len(questions)}, one for each question")
    return Row(place, split, number, context, questions, answers, metadata)


def _questions(row: Row, kind: Kind) -> Iterator[Question]:
    count = len(row.questions)
    names, ids, types, dates = (row.metadata.get(name) or [None] * count for name in PARALLEL)
    keypoints, demo = row.metadata.get("keypoints") or [], row.metadata.get("demo") or ""
    for i, (text, right) in enumerate(zip(row.questions, row.answers, strict=True)):
        points = keypoints[i] if keypoints and isinstance(keypoints[0], list) else keypoints
        yield Question(
            id=f"{row.split}/{row.number}/{i}",
            text=prompt(kind, text, dates[i] or "", demo if isinstance(demo, str) else "\n\n".join(demo)),
            answers=tuple(right),
            group=types[i] or "",
            metadata={
                "question": text,
                "qa_pair_id": names[i],
                "question_id": ids[i],
                "question_type": types[i],
                "keypoints": points,
            },
        )


def _pieces(sentence: str, most: int, count: Callable[[str], int]) -> list[tuple[str, int]]:
    if (tokens := count(sentence)) <= most:
        return [(sentence, tokens)]
    if len(sentence) < 2:
        raise DeltaMemError(f"chunks of {most} tokens hold not even {sentence!r}; give a larger chunk_tokens")
    middle = len(sentence) // 2
    space = sentence.rfind(" ", 0, middle) + 1  # behind the space
    cut = space or middle
    return _pieces(sentence[:cut], most, count) + _pieces(sentence[cut:], most, count)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _parquet(file: Path) -> Iterator[Any]:
    parquet = require("pyarrow.parquet", f"{file}")
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=1):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors of damaged files are of these
        raise DeltaMemError(f"{file} is no parquet file that can be read: {error}; download it again") from error


def _json_lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DeltaMemError(f"{file}, row {number}: not JSON ({error}); write one object a line") from error


_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {".parquet": _parquet, ".jsonl": _json_lines}
