"""The full-text index of the journal inside the database: SQLite's FTS5, PostgreSQL's tsvector.

Both hold the words of :func:`~.ranking.tokens`, so that the same query finds the same entries everywhere. An encrypted
store has none of it. All functions work in the transaction of their connection.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from .backend import Indexed
from .ranking import TOKENIZER, clean, terms, tokens

# What a tsvector takes: bytes of a word, bytes in all, places that it can count, places of one word.
MOST_WORD, MOST_VECTOR, MOST_PLACE, MOST_PLACES = 2046, 2**20 - 1, 2**14 - 1, 255


class SQLiteIndex:
    """A contentless FTS5 table: it holds words, no texts. The first column says whose entry a row is."""

    def create(self, connection: Connection) -> None:
        """Make the index; nothing happens when it is there."""
        connection.exec_driver_sql(
            "CREATE VIRTUAL TABLE IF NOT EXISTS journal_index "
            f"USING fts5(agent, text, content='', tokenize='{TOKENIZER}')"
        )

    def add(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        """Put texts into the index."""
        self._write(connection, "(rowid, agent, text) VALUES (?, ?, ?)", rows)

    def remove(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        """Take texts out. Rows that were not put in, or were otherwise, damage the index."""
        self._write(connection, "(journal_index, rowid, agent, text) VALUES ('delete', ?, ?, ?)", rows)

    def _write(self, connection: Connection, what: str, rows: Sequence[Indexed]) -> None:
        ordered = sorted(rows)  # FTS5 likes rowids in order
        values = [(row.pk, f"a{row.agent_pk}", clean(row.text or "")) for row in ordered]
        if values:
            connection.exec_driver_sql(f"INSERT INTO journal_index {what}", values)

    def match(self, connection: Connection, agent_pk: int, words: Sequence[str], limit: int) -> list[int]:
        """Keys of an agent's entries that hold any of the words, the best first (BM25 among all agents' entries)."""
        wanted = " OR ".join(f'"{word}"' for word in terms(" ".join(words)))
        if not wanted:
            return []
        found = connection.exec_driver_sql(
            "SELECT rowid FROM journal_index WHERE journal_index MATCH ? "
            "ORDER BY bm25(journal_index, 0.0, 1.0), rowid DESC LIMIT ?",
            (f'agent:"a{agent_pk}" AND text:({wanted})', limit),
        )
        return list(found.scalars())

    def purge(self, connection: Connection) -> None:
        """Leave nothing of removed texts in the index: until then FTS5 keeps their words, noting that they are gone.

        VACUUM has to follow, outside of the transaction, and a checkpoint. ``PRAGMA secure_delete`` is not enough, for
        any table: when SQLite moves rows to another page, copies of them can stay in the gaps of the old one, and
        nothing overwrites these when the rows are deleted.
        """
        connection.exec_driver_sql("INSERT INTO journal_index (journal_index) VALUES ('optimize')")


class PostgresIndex:
    """A table of word vectors beside the entries.

    A vector holds less than a megabyte: of a longer text, the first words are indexed, some hundred thousand. Words of
    more than 2046 bytes are left out.
    """

    tables = ("journal_index",)

    def create(self, connection: Connection) -> None:
        """Make the index; nothing happens when it is there."""
        for statement in (
            "CREATE TABLE IF NOT EXISTS journal_index ("
            "entry_pk BIGINT PRIMARY KEY REFERENCES entries (pk) ON DELETE CASCADE, "
            "agent_pk BIGINT NOT NULL, words TSVECTOR NOT NULL)",
            "CREATE INDEX IF NOT EXISTS ix_journal_index_words ON journal_index USING gin (words)",
            "CREATE INDEX IF NOT EXISTS ix_journal_index_agent_pk ON journal_index (agent_pk)",
        ):
            connection.execute(text(statement))

    def add(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        """Put texts into the index."""
        if rows:
            texts = tokens([row.text or "" for row in rows])
            pairs = zip(rows, map(vector, texts), strict=True)
            values = [{"pk": row.pk, "agent": row.agent_pk, "words": words} for row, words in pairs]
            connection.execute(_ADD, values)

    def remove(self, connection: Connection, rows: Sequence[Indexed]) -> None:
        """Take texts out; those that are not there are passed over."""
        if rows:
            pks = [row.pk for row in rows]
            connection.execute(text("DELETE FROM journal_index WHERE entry_pk = ANY(:pks)"), {"pks": pks})

    def match(self, connection: Connection, agent_pk: int, words: Sequence[str], limit: int) -> list[int]:
        """Keys of an agent's entries that hold any of the words, the best first (nearly BM25)."""
        wanted = [quoted(word) for word in terms(" ".join(words)) if len(word.encode()) <= MOST_WORD]
        if not wanted:
            return []
        values = {"agent": agent_pk, "words": wanted, "any": " | ".join(wanted), "limit": limit}
        return list(connection.execute(_MATCH, values).scalars())

    def purge(self, connection: Connection) -> None:
        """Nothing to do inside a transaction. VACUUM FULL has to follow, which writes table and index anew.

        A plain VACUUM frees space without overwriting it, and a GIN index never loses a word. The old files are gone at
        the server's next checkpoint; its write-ahead log and its backups are not reached from here.
        """


def quoted(word: str) -> str:
    """A word as a literal of tsvector and tsquery."""
    escaped = word.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def vector(words: Sequence[str]) -> str:
    """The literal of a tsvector of the words and their places, as far as they fit."""
    places: dict[str, list[int]] = {}
    size = 0
    for place, word in enumerate(words, 1):
        length = len(word.encode())
        if length > MOST_WORD:
            continue
        size += 2 if word in places else length + 5  # with a count, a place, and one byte to make the address even
        if size > MOST_VECTOR:
            break
        found = places.setdefault(word, [])
        if not found or (place <= MOST_PLACE and len(found) < MOST_PLACES):
            found.append(min(place, MOST_PLACE))
    return " ".join(f"{quoted(word)}:{','.join(map(str, found))}" for word, found in places.items())


_ADD = text("INSERT INTO journal_index (entry_pk, agent_pk, words) VALUES (:pk, :agent, CAST(:words AS tsvector))")

# As ranking.rank does it, but for the length of a text, which is its number of different words. The rank of PostgreSQL
# itself does not know how rare a word is: many entries with "the" would hide the one with the name. ts_rank_cd with one
# word is a tenth of the number of its places.
_MATCH = text("""
    WITH hit AS MATERIALIZED (
        SELECT entry_pk, words, length(words) AS size FROM journal_index
        WHERE agent_pk = :agent AND words @@ CAST(:any AS tsquery)
    ), place AS MATERIALIZED (
        SELECT entry_pk, size, word, 10 * ts_rank_cd(words, word) AS times
        FROM hit JOIN unnest(CAST(:words AS tsquery[])) AS word ON words @@ word
    ), usual AS (
        SELECT avg(size) AS size, count(*) AS total FROM hit
    ), weight AS (
        SELECT word, ln(1 + (total - count(*) + 0.5) / (count(*) + 0.5)) AS rarity
        FROM place, usual GROUP BY word, total
    )
    SELECT entry_pk FROM place JOIN weight USING (word), usual
    GROUP BY entry_pk
    ORDER BY sum(rarity * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * place.size / usual.size))) DESC, entry_pk DESC
    LIMIT :limit
""")
