"""Words of a text and how well texts match them, the same for every database.

The words are those of SQLite's FTS5: its tokenizer splits and folds, in a database in memory for the time of a call.
"""

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from math import fsum, log

TOKENIZER = "unicode61 remove_diacritics 2"  # words are runs of letters and digits, without case and diacritics
MOST_TERMS = 64
SATURATION, LENGTH = 1.2, 0.75  # k1 and b of BM25

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # what databases do not take: NUL, and halves of surrogate pairs


def clean(text: str) -> str:
    """The text as a database can hold it: a space for each NUL and each lone surrogate."""
    return _UNSTORABLE.sub(" ", text)


def tokens(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, normalised, in their order."""
    found: list[list[str]] = [[] for _ in texts]
    with _words(enumerate(texts)) as connection:
        for key, word in connection.execute("SELECT doc, term FROM word ORDER BY doc, offset"):
            found[key].append(word)
    return found


def terms(query: str) -> list[str]:
    """The different words of a query, normalised, at most :data:`MOST_TERMS`.

    There is no query syntax: operators, quotes and wildcards are words, or nothing. A query of signs has no words.
    """
    return list(dict.fromkeys(tokens([query])[0]))[:MOST_TERMS]


def rank(query_terms: Sequence[str], texts: Iterable[tuple[int, str]]) -> list[tuple[int, float]]:
    """Rank texts by BM25 among those that hold at least one of the words; others change nothing.

    Args:
        query_terms: words; see :func:`terms`.
        texts: key (each once) and text.

    Returns:
        Key and score, above zero, of those that hold a word: the best first, of equal ones the largest key first.
    """
    lengths: dict[int, int] = {}
    with _words(_measured(texts, lengths)) as connection:
        count = "SELECT doc, count(*) FROM word WHERE term = ? GROUP BY doc"
        holders = [connection.execute(count, (word,)).fetchall() for word in terms(" ".join(query_terms))]
    found = {key for held in holders for key, _ in held}
    usual = sum(lengths[key] for key in found) / max(len(found), 1)
    parts: dict[int, list[float]] = defaultdict(list)
    for held in holders:
        rarity = log(1 + (len(found) - len(held) + 0.5) / (len(held) + 0.5))
        for key, times in held:
            room = SATURATION * (1 - LENGTH + LENGTH * lengths[key] / usual)
            parts[key].append(rarity * times * (SATURATION + 1) / (times + room))
    scores = ((key, fsum(part)) for key, part in parts.items())  # fsum: the order of the words makes no difference
    return sorted(scores, key=lambda scored: (-scored[1], -scored[0]))


def _measured(texts: Iterable[tuple[int, str]], lengths: dict[int, int]) -> Iterator[tuple[int, str]]:
    """The texts; how long each is, is noted in ``lengths``."""
    for key, text in texts:
        lengths[key] = len(text)
        yield key, text


@contextmanager
def _words(texts: Iterable[tuple[int, str]]) -> Iterator[sqlite3.Connection]:
    """A database in memory; its table ``word`` has term, doc (a key) and offset of each word of the texts."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE VIRTUAL TABLE page USING fts5(text, content='', tokenize='{TOKENIZER}')")
        connection.execute("CREATE VIRTUAL TABLE word USING fts5vocab(page, instance)")
        rows = ((key, clean(text)) for key, text in texts)
        connection.executemany("INSERT INTO page (rowid, text) VALUES (?, ?)", rows)
        yield connection
