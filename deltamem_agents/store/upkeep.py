"""Upkeep of a SQL store: forgetting, pruning, collecting, verifying, keys."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from ..errors import (
    AgentNotFound,
    CorruptState,
    HeadConflict,
    StoreError,
    StoreKeyError,
    StoreUnavailable,
    VersionNotFound,
)
from .backend import Indexed
from .cipher import Cipher
from .copying import Copying
from .lines import straighten
from .models import AgentRow, BlobRow, EntryRow, MetaRow, PartRow, RedirectRow, TombstoneRow, VersionRow
from .records import Problem, Version, checksum, version_id
from .rows import CHUNK, VERSION, chunks, now


class Upkeep(Copying):
    """Everything that a store does beside reading and writing."""

    def delete(self, agent_id: str, *, scrub: bool = True) -> int:
        def write(c: Connection) -> int:
            pk = self._agent_pk(c, agent_id)
            self._find_agent(c, agent_id, lock=True)
            own = c.scalars(select(VersionRow.pk).where(VersionRow.agent_pk == pk)).all()
            self._erase(c, pk, own)
            c.execute(delete(AgentRow).where(AgentRow.pk == pk))  # what belongs to it goes with it
            return len(own)

        count = self._run(write, write=True)
        if scrub:
            self.scrub()
        return count

    def rewrite(
        self,
        agent_id: str,
        successors: Mapping[str, str | None],
        forgotten: Collection[str],
        *,
        scrub: bool = True,
    ) -> None:
        def write(c: Connection) -> None:
            pk = self._agent_pk(c, agent_id)
            agent = self._find_agent(c, agent_id, lock=True)
            held = self._holding(c, pk, forgotten)
            rows = {row.version_id: row for row in self._descendants(c, pk, held)}
            if missing := sorted(set(rows) - set(successors)):
                raise HeadConflict(f"agent {agent_id!r}: version {missing[0]} was written meanwhile: forget again")
            if agent.head in rows:
                c.execute(update(AgentRow).where(AgentRow.pk == pk).values(head=successors[agent.head]))
            self._redirect(c, pk, {old: successors[old] for old in rows})
            for old, row in rows.items():
                if (new := successors[old]) is not None:
                    own = VersionRow.agent_pk == pk, VersionRow.version_id == new
                    pin = {"pin": row.pin} if row.pin is not None else {}
                    c.execute(update(VersionRow).where(*own).values(retired=row.retired, **pin))
            self._bury(c, pk, forgotten)
            self._erase(c, pk, [row.pk for row in rows.values()])
            straighten(c, pk)

        self._run(write, write=True)
        if scrub:
            self.scrub()

    def prune(self, agent_id: str | None = None, *, keep_every: int = 50, keep_last: int = 1) -> int:
        self._need_text("bring back states of")
        if keep_every < 1 or keep_last < 1:
            raise StoreError(f"keep_every = {keep_every} and keep_last = {keep_last} must be 1 or more")

        def write(c: Connection, name: str) -> int:
            agent_pk = self._agent_pk(c, name)
            agent = self._find_agent(c, name, lock=True)
            ends = (
                select(VersionRow.line, func.max(VersionRow.depth).label("depth"))
                .where(VersionRow.agent_pk == agent_pk)
                .group_by(VersionRow.line)
                .subquery()
            )
            old = (
                select(VersionRow.pk)
                .join(ends, ends.c.line == VersionRow.line)
                .where(VersionRow.agent_pk == agent_pk, VersionRow.version_id != agent.head)
                .where(VersionRow.pruned.is_(False), VersionRow.pin.is_(None))
                .where(VersionRow.depth % keep_every != 0, VersionRow.depth <= ends.c.depth - keep_last)
            )
            keys = c.scalars(old).all()
            for some in chunks(keys):
                c.execute(update(VersionRow).where(VersionRow.pk.in_(some)).values(pruned=True))
            self._drop_bytes(c, agent_pk)
            return len(keys)

        names = [agent_id] if agent_id is not None else [agent.agent_id for agent in self.agents()]
        return sum(self._run(lambda c, name=name: write(c, name), write=True) for name in names)  # type: ignore[misc]

    def collect(self, agent_id: str | None = None, *, older_than: timedelta, scrub: bool = True) -> int:
        def write(c: Connection, name: str) -> int:
            agent_pk = self._agent_pk(c, name)
            head = self._find_agent(c, name, lock=True).head
            rows = {row.version_id: row for row in c.execute(select(*VERSION).where(VersionRow.agent_pk == agent_pk))}
            limit = now() - older_than
            roots = [v for v, row in rows.items() if v == head or row.pin is not None or row.created_at >= limit]
            kept: set[str] = set()
            for root in roots:
                at: str | None = root
                while at is not None and at not in kept:
                    kept.add(at)
                    at = rows[at].parent
            gone = [row for v, row in rows.items() if v not in kept]
            left: dict[str, str | None] = {}
            for row in sorted(gone, key=lambda row: row.depth):
                left[row.version_id] = left.get(row.parent, row.parent)
            self._redirect(c, agent_pk, left)
            self._erase(c, agent_pk, [row.pk for row in gone])
            straighten(c, agent_pk)
            return len(gone)

        names = [agent_id] if agent_id is not None else [agent.agent_id for agent in self.agents()]
        count = sum(self._run(lambda c, name=name: write(c, name), write=True) for name in names)  # type: ignore[misc]
        if count and scrub:
            self.scrub()
        return count

    def drop_damaged(self, agent_id: str, version_id: str) -> None:
        self._need_text("bring back states of")

        def write(c: Connection) -> None:
            row = self._row(c, agent_id, version_id)
            agent_pk = self._agent_pk(c, agent_id)
            query = select(PartRow.checksum, BlobRow.data).join(
                BlobRow, (BlobRow.agent_pk == PartRow.agent_pk) & (BlobRow.checksum == PartRow.checksum), isouter=True
            )
            for sha, data in c.execute(query.where(PartRow.version_pk == row.pk)).all():
                if self._bad(data, sha):  # all versions that have these bytes
                    c.execute(delete(BlobRow).where(BlobRow.agent_pk == agent_pk, BlobRow.checksum == sha))
                    users = select(PartRow.version_pk).where(PartRow.agent_pk == agent_pk, PartRow.checksum == sha)
                    c.execute(update(VersionRow).where(VersionRow.pk.in_(users)).values(pruned=True))

        self._run(write, write=True)

    def fill(self, agent_id: str, version_id: str, parts: Mapping[str, bytes]) -> None:
        def write(c: Connection) -> None:
            row = self._row(c, agent_id, version_id)
            own = c.execute(select(PartRow.name, PartRow.checksum).where(PartRow.version_pk == row.pk)).all()
            if {name: checksum(data) for name, data in parts.items()} != {part.name: part.checksum for part in own}:
                raise CorruptState(
                    f"agent {agent_id!r}, version {version_id}: these are not the bytes that were written there"
                )
            self.sealed.put_parts(c, self._agent_pk(c, agent_id), row.pk, {}, parts.values())
            c.execute(update(VersionRow).where(VersionRow.pk == row.pk).values(pruned=False))

        self._run(write, write=True)

    def scrub(self) -> None:
        self.backend.scrub()

    def close(self) -> None:
        self.backend.close()

    # Verifying

    def verify(self, agent_id: str | None = None) -> Iterator[Problem]:
        yield from self._problems(None, None, lambda: self._run(self.backend.problems))
        names = [agent_id] if agent_id is not None else []
        if agent_id is None:
            yield from self._problems(None, None, lambda: names.extend(agent.agent_id for agent in self.agents()))
        for name in names:
            try:
                yield from self._verify_agent(name)
            except (AgentNotFound, VersionNotFound):
                if agent_id is not None:  # else it was deleted meanwhile
                    raise

    def _problems(
        self, name: str | None, version_id: str | None, look: Callable[[], list[str] | None]
    ) -> list[Problem]:
        """What ``look`` finds; that something cannot be read is a problem, too."""
        try:
            return [Problem(name, version_id, what) for what in look() or ()]
        except (AgentNotFound, VersionNotFound, StoreUnavailable):
            raise
        except StoreError as error:
            return [Problem(name, version_id, str(error))]

    def _verify_agent(self, name: str) -> Iterator[Problem]:
        tree: list[Version] = []
        yield from self._problems(name, None, lambda: tree.extend(self.tree(name)))
        known = {version.version_id: version for version in tree}
        head = self.head(name)
        if head is not None and head not in known:
            yield Problem(name, None, f"the head {head} is not among its versions")
        checked: dict[str, str | None] = {}
        for version in tree:

            def look(c: Connection, version: Version = version) -> list[str]:
                return list(self._version_problems(c, name, version, known, checked))

            yield from self._problems(name, version.version_id, lambda look=look: self._run(look))  # type: ignore[misc]

    def _version_problems(
        self, c: Connection, name: str, version: Version, known: Mapping[str, Version], checked: dict[str, str | None]
    ) -> Iterator[str]:
        if version.parent is not None and version.parent not in known:
            yield f"its parent {version.parent} is missing"
        elif version.parent is not None and known[version.parent].depth + 1 != version.depth:
            yield "its depth is not that of its parent plus one"
        agent_pk = self._agent_pk(c, name)
        try:
            yield from self._chain_problems(c, agent_pk, name, version)
        except CorruptState as error:
            yield str(error)
        if version.pruned:
            return
        for part, sha in version.parts.items():
            if sha not in checked:
                own = BlobRow.agent_pk == agent_pk, BlobRow.checksum == sha
                checked[sha] = self._bad(c.scalar(select(BlobRow.data).where(*own)), sha)
            if checked[sha]:
                yield f"sub-state {part!r}: {checked[sha]}"

    def _chain_problems(self, c: Connection, agent_pk: int, name: str, version: Version) -> Iterator[str]:
        entries = [record.entry for record in self._own_records(c, agent_pk, version.version_id)]
        identity = version_id(name, version.parent, entries, version.fingerprint, version.resets, self.tenant)
        if identity != version.version_id:
            yield "its id is not the hash of what was written: rows were changed or are missing"

    def _bad(self, data: bytes | None, sha: str) -> str | None:
        """What is wrong with the bytes of a part, if anything."""
        if data is None:
            return "its bytes are missing"
        try:
            opened = self.sealed.cipher.open(data, b"blob:" + sha.encode())
        except (CorruptState, StoreKeyError) as error:
            return f"its bytes are damaged ({error})"
        return None if checksum(opened) == sha else "its bytes do not match their checksum"

    # Keys

    def rotate(self, keys: Sequence[bytes]) -> int:
        old, new = self.sealed.cipher, Cipher.of(keys)
        opened_by: Callable[[bytes, bytes], bytes] = lambda data, context: (  # noqa: E731
            old.open(data, context) if new.needs_reseal(data) else new.open(data, context)
        )
        changed = 0
        for table, key, column, context in (
            (BlobRow, BlobRow.checksum, BlobRow.data, lambda row: b"blob:" + row.checksum.encode()),
            (EntryRow, EntryRow.pk, EntryRow.body, lambda row: b"entry:" + row.content_hash.encode()),
        ):
            changed += self._reseal(table, key, column, context, opened_by, new)
        encrypted = bool(keys)
        self._run(lambda c: self._change_cipher(c, old, new, encrypted), write=True)
        self.policy = replace(self.policy, encrypted=encrypted)
        self.sealed.cipher, self.sealed.policy = new, self.policy
        self.scrub()
        return changed

    def _reseal(self, table: Any, key: Any, column: Any, context: Any, opened_by: Any, new: Cipher) -> int:
        """All rows of one table, a transaction for every CHUNK of them."""
        owner = table.agent_pk
        last: tuple[Any, Any] = (-1, "" if table is BlobRow else -1)
        changed = 0
        while True:

            def step(c: Connection, last: tuple[Any, Any] = last) -> tuple[list[Any], int]:
                beyond = (owner > last[0]) | ((owner == last[0]) & (key > last[1]))
                rows = c.execute(select(table).where(beyond).order_by(owner, key).limit(CHUNK)).all()
                count = 0
                for row in rows:
                    data = getattr(row, column.key)
                    if data is not None and new.needs_reseal(data):
                        fresh = new.seal(opened_by(data, context(row)), context(row))
                        own = owner == row.agent_pk, key == getattr(row, key.key)
                        c.execute(update(table).where(*own).values({column: fresh}))
                        count += 1
                return list(rows), count

            rows, count = self._run(step, write=True)
            changed += count
            if not rows:
                return changed
            last = rows[-1].agent_pk, getattr(rows[-1], key.key)

    def _change_cipher(self, c: Connection, old: Cipher, new: Cipher, encrypted: bool) -> None:
        c.execute(delete(MetaRow).where(MetaRow.key == "cipher"))
        if encrypted:
            c.execute(insert(MetaRow).values(key="cipher", value=new.check_value()))
        if self.policy.journal == "full" and encrypted != self.policy.encrypted:
            texts = self._texts(c, cipher=new)
            if encrypted:
                self.backend.index_remove(c, texts)
            else:
                self.backend.index_add(c, [row for row in texts if row.text is not None])

    def _texts(self, c: Connection, *where: Any, cipher: Cipher | None = None) -> list[Indexed]:
        """What the index holds of some entries; a text of None where that cannot be told any more."""
        sealed = type(self.sealed)(self.backend, cipher or self.sealed.cipher, self.policy)
        query = select(EntryRow, VersionRow.version_id).join(VersionRow, VersionRow.pk == EntryRow.version_pk)
        try:
            rows = c.execute(query.where(*where)).all()
        except ValueError:  # a row that is damaged
            keys = c.execute(select(EntryRow.pk, EntryRow.agent_pk).where(*where)).all()
            return [Indexed(row.pk, row.agent_pk, None) for row in keys]
        found = []
        for row in rows:
            try:
                text = sealed.to_record(row).entry.content or ""
            except CorruptState:
                text = None
            found.append(Indexed(row.pk, row.agent_pk, text))
        return found

    # What the methods share

    def _holding(self, c: Connection, agent_pk: int, entry_ids: Collection[str]) -> set[int]:
        """Keys of the versions that hold any of the entries."""
        found: set[int] = set()
        for some in chunks(list(entry_ids)):
            query = select(EntryRow.version_pk).where(EntryRow.agent_pk == agent_pk, EntryRow.entry_id.in_(some))
            found.update(c.scalars(query))
        return found

    def _descendants(self, c: Connection, agent_pk: int, keys: set[int]) -> list[Any]:
        """The versions with these keys and all that come after them, parents first."""
        query = select(*VERSION).where(VersionRow.agent_pk == agent_pk).order_by(VersionRow.depth)
        found: dict[str, Any] = {}
        for row in c.execute(query):
            if row.pk in keys or row.parent in found:
                found[row.version_id] = row
        return list(found.values())

    def _redirect(self, c: Connection, agent_pk: int, targets: Mapping[str, str | None]) -> None:
        """Later reads by the old ids go to the new ones, those that were redirected before too."""
        for old, new in targets.items():
            own = RedirectRow.agent_pk == agent_pk, RedirectRow.target == old
            c.execute(update(RedirectRow).where(*own).values(target=new))
        for some in chunks(list(targets)):  # one that was written again since it went before
            own = RedirectRow.agent_pk == agent_pk, RedirectRow.version_id.in_(some)
            c.execute(delete(RedirectRow).where(*own))
        if targets:
            rows = [{"agent_pk": agent_pk, "version_id": old, "target": new} for old, new in targets.items()]
            c.execute(insert(RedirectRow), rows)

    def _bury(self, c: Connection, agent_pk: int, entry_ids: Collection[str]) -> None:
        """Remember the message ids of what is forgotten."""
        for some in chunks(list(entry_ids)):
            query = select(EntryRow.message_id).where(EntryRow.agent_pk == agent_pk, EntryRow.entry_id.in_(some))
            rows = [{"agent_pk": agent_pk, "message_id": m} for m in set(c.scalars(query)) if m is not None]
            if rows:
                c.execute(self.backend.insert_missing(TombstoneRow), rows)

    def _erase(self, c: Connection, agent_pk: int, version_pks: Sequence[int]) -> None:
        """Delete versions with their entries, parts and index, and the bytes that nothing else uses."""
        for some in chunks(version_pks):
            if self.sealed.indexed:
                self.backend.index_remove(c, self._texts(c, EntryRow.version_pk.in_(some)))
            c.execute(delete(VersionRow).where(VersionRow.pk.in_(some)))
        self._drop_bytes(c, agent_pk)

    def _drop_bytes(self, c: Connection, agent_pk: int) -> None:
        """Delete the bytes that no version uses, pruned ones aside."""
        used = exists().where(
            PartRow.agent_pk == BlobRow.agent_pk,
            PartRow.checksum == BlobRow.checksum,
            VersionRow.pk == PartRow.version_pk,
            VersionRow.pruned.is_(False),
        )
        c.execute(delete(BlobRow).where(BlobRow.agent_pk == agent_pk, ~used))
