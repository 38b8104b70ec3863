"""One agent as one file, to move it to another store or to put it aside.

The file is **not encrypted**, even when the store is; only its owner may read it (mode 600). It is a ZIP file whose
members are not compressed, so that nothing in it is larger than it looks:

``manifest.json``
    ``format`` ("deltamem-agent"), ``version`` (1), ``library`` (the version of deltamem-agents), ``created_at``,
    ``tenant``, ``agent``, ``head`` (a version id or null), ``journal`` (the store's policy, "full" or "hash"),
    ``counts`` (of ``versions``, ``entries``, ``states`` and ``tombstones``), and ``sha256`` (name -> SHA-256 of every
    other member).
``versions.jsonl``
    One JSON object a line for each version, parents before children: ``version_id``, ``parent``, ``fingerprint``,
    ``created_at``, ``parts`` (sub-state -> SHA-256 of its bytes), ``new`` (the sub-states whose bytes no version before
    it has), ``resets``, ``depth``, ``pin``, ``pruned``, ``retired``, and ``entries``: a list of objects with
    ``entry_id``, ``made_at``, ``content_hash``, and the attributes of :class:`Entry` but ``digest``. ``content`` and
    ``payload`` are null where hashes alone are kept.
``states/<sha256>.safetensors``
    The bytes of one part, as the store keeps them. A version that is ``pruned`` may name parts that are not there.
``tombstones.json``
    A list of the message ids that were forgotten.

Text is UTF-8; halves of surrogate pairs, which UTF-8 does not have, are written as it would (Python's "surrogatepass").
Times are ISO 8601 with their zone. Version ids are those of :func:`version_id` under the tenant and agent of the
manifest. Where the ids of rewritten versions lead (the store's redirects) is not in the file: a thread that stands on a
version from before a forgetting begins at the head of the imported agent.
"""

import json
import os
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import NoneType as No
from typing import IO, Any

from .. import __version__
from ..errors import ArchiveError
from .contract import Dumped, Store
from .records import Agent, Entry, Record, Version, checksum, version_id

FORMAT, FORMAT_VERSION = "deltamem-agent", 1
MANIFEST, VERSIONS, TOMBSTONES = "manifest.json", "versions.jsonl", "tombstones.json"
STATE = re.compile(r"states/([0-9a-f]{64})\.safetensors")
AGAIN = "export it again"

# What zipfile, json and the checks here raise for bytes that are not what they should be.
UNREADABLE = (zipfile.BadZipFile, struct.error, EOFError, OSError)
WRONG = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Kinds = dict[str, tuple[type, ...]]
MANIFEST_KINDS: Kinds = {
    **{"format": (str,), "version": (int,), "library": (str,), "created_at": (str,), "tenant": (str,)},
    **{"agent": (str,), "head": (str, No), "journal": (str,), "counts": (dict,), "sha256": (dict,)},
}
VERSION_KINDS: Kinds = {
    **{"version_id": (str,), "parent": (str, No), "fingerprint": (str,), "created_at": (str,), "parts": (dict,)},
    **{"new": (list,), "resets": (list,), "depth": (int,), "pin": (str, No), "pruned": (bool,), "retired": (bool,)},
    **{"entries": (list,)},
}
ENTRY_KINDS: Kinds = {
    **{"entry_id": (str,), "made_at": (str,), "content_hash": (str,), "role": (str,), "content": (str, No)},
    **{"sub_states": (list,), "message_id": (str, No), "source": (str, No), "payload": (dict, No)},
    **{"thread_id": (str, No), "run_id": (str, No), "tokens": (int, No), "gate": (dict, No), "moved": (dict, No)},
}


def export_agent(store: Store, agent_id: str, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an agent with all its versions to a file, which appears when it is complete, or not at all.

    A process that is killed may leave a temporary file ``.deltamem-*.part`` there. In memory is one version at a time.

    Args:
        overwrite: replace a file that is there.

    Raises:
        AgentNotFound, CorruptState.
        ArchiveError: a file is there, or cannot be written, or versions are damaged or were deleted meanwhile.
    """
    target = Path(path).expanduser()
    before = store.agent(agent_id).head
    changed = ArchiveError(
        f"agent {agent_id!r} changed while it was exported to {target}, or is damaged: {AGAIN}; if that fails too, "
        "deltamem store verify says more"
    )
    with (
        _whole_file(target, overwrite) as file,
        tempfile.TemporaryFile(dir=target.parent) as lines,
        zipfile.ZipFile(file, "w") as container,
    ):
        writer = _Writer(container, lines)
        for item in store.dump(agent_id):
            if not (_agrees(item, store.tenant) and writer.add(item)):
                raise changed
        heads = [head for head in (store.head(agent_id), before) if head is None or head in writer.ids]
        if not heads:
            raise changed
        about = {"tenant": store.tenant, "agent": agent_id, "head": heads[0], "journal": store.policy.journal}
        # Read after the versions: one too many does no harm, a missing one would let a message be written again.
        writer.finish(about, sorted(store.tombstones(agent_id)))
    return target


def import_agent(store: Store, path: str | Path, as_agent: str | None = None) -> Agent:
    """Read an exported agent into a store, under its own name or another one, in any tenant.

    The whole file is checked before the store is touched. Under the same name and tenant, version ids stay as they
    are; else they are made anew.

    Raises:
        ArchiveError: no export, a damaged one, one of a newer library, or of a store with another journal policy.
        AgentExists: an agent of that name is there.
        InvalidName: ``as_agent`` is no name for an agent.
    """
    with closing(_Reader(Path(path).expanduser())) as reader:
        policy, name = reader.manifest["journal"], reader.manifest["agent"] if as_agent is None else as_agent
        if policy != store.policy.journal:
            raise ArchiveError(
                f"{reader.source} was exported from a store with the journal policy {policy!r}, and {store.location} "
                f"has {store.policy.journal!r}: import it into a store that is made with the policy {policy!r}"
            )
        for _ in reader:
            pass
        return store.restore(name, reader, reader.manifest["head"], tombstones=reader.tombstones())


class _Writer:
    """Writes the members. The lines of versions.jsonl gather in a file of their own, as states come in between."""

    def __init__(self, container: zipfile.ZipFile, lines: IO[bytes]) -> None:
        self._zip, self._lines = container, lines
        self._sha256: dict[str, str] = {}
        self._digest, self._entries = sha256(), 0
        self.ids: set[str] = set()

    def add(self, item: Dumped) -> bool:
        """Write the states of a version that are new, and remember its line; whether all its states are there."""
        version, records, new = item
        for name, data in new.items():
            self._put(_state(version.parts[name]), data)
        line = _to_json(_document(version, records, list(new))) + b"\n"
        self._lines.write(line)
        self._digest.update(line)
        self._entries += len(records)
        self.ids.add(version.version_id)
        return version.pruned or all(_state(sha) in self._sha256 for sha in version.parts.values())

    def finish(self, about: dict[str, Any], tombstones: list[str]) -> None:
        """Write all that is not a state."""
        states = len(self._sha256)
        info = zipfile.ZipInfo(VERSIONS)
        info.file_size = self._lines.tell()
        self._lines.seek(0)
        with self._zip.open(info, "w") as member:
            shutil.copyfileobj(self._lines, member)
        self._sha256[VERSIONS] = self._digest.hexdigest()
        self._put(TOMBSTONES, _to_json(tombstones))
        counts = {"versions": len(self.ids), "entries": self._entries, "states": states, "tombstones": len(tombstones)}
        made = {"library": __version__, "created_at": datetime.now(UTC).isoformat()}
        document = {"format": FORMAT, "version": FORMAT_VERSION, **made, **about, "counts": counts}
        self._put(MANIFEST, _to_json(document | {"sha256": self._sha256}))

    def _put(self, name: str, data: bytes) -> None:
        if name not in self._sha256:
            self._sha256[name] = checksum(data)
            self._zip.writestr(zipfile.ZipInfo(name), data)


class _Reader:
    """An open export. To go through it gives what :meth:`Store.dump` gave, as often as one likes, and checks it all."""

    def __init__(self, source: Path) -> None:
        self.source = source
        try:
            self._file = open(source, "rb")  # noqa: SIM115
        except OSError as error:
            raise ArchiveError(f"{source} cannot be read ({error.strerror}): give the path of an export") from error
        try:
            with self._reading("the file"):
                self._size = os.fstat(self._file.fileno()).st_size
                self._zip = zipfile.ZipFile(self._file)
                self._members = {info.filename: info for info in self._zip.infolist()}
            self.manifest = self._read_manifest()
            self._check_members()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Dumped]:
        depths: dict[str | None, int] = {None: -1}
        states: set[str] = set()
        entries = 0
        for number, line in enumerate(self._lines(), 1):
            with self._reading(f"line {number} of {VERSIONS}"):
                version, records, new = _version(_from_json(line), self.manifest)
                _require(version.version_id not in depths, "this version was there before")
                _require(version.parent in depths, "its parent does not come before it")
                _require(version.depth == depths[version.parent] + 1, "its depth is not its parent's and one")
                states |= {version.parts[name] for name in new}
                _require(version.pruned or states.issuperset(version.parts.values()), "bytes of a part are missing")
            depths[version.version_id] = version.depth
            entries += len(records)
            yield version, records, {name: self._read(_state(version.parts[name])) for name in new}
        head, counts = self.manifest["head"], self.manifest["counts"]
        with self._reading(VERSIONS):
            found = {"versions": len(depths) - 1, "entries": entries, "states": len(states)}
            _require(counts == found | {"tombstones": len(self.tombstones())}, f"it holds {found}, of {counts}")
            _require(head in depths, f"the head {head} is missing")
            _require(len(states) == len(self._members) - 3, "there are states that no version has")

    def tombstones(self) -> list[str]:
        with self._reading(TOMBSTONES):
            found = _texts(_from_json(self._read(TOMBSTONES)))
            _require(len(found) == len(set(found)), "an id is there twice")
            return found

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """What is wrong in the block is wrong with ``what``."""
        try:
            yield
        except (*UNREADABLE, *WRONG) as error:
            why = str(error) or type(error).__name__
            raise ArchiveError(f"{self.source}: {what} is damaged or no export ({why}): {AGAIN}") from error

    def _read_manifest(self) -> dict[str, Any]:
        with self._reading(MANIFEST):
            _require(MANIFEST in self._members, "it is missing: this is no export of an agent")
            document = _from_json(self._read(MANIFEST))
            _require(type(document) is dict and document.get("format") == FORMAT, f"its format is not {FORMAT!r}")
            version = document.get("version")
            if type(version) is int and version > FORMAT_VERSION:
                raise ArchiveError(
                    f"{self.source} has version {version} of the format and was made by deltamem-agents "
                    f"{document.get('library')}; this one ({__version__}) reads version {FORMAT_VERSION}: upgrade "
                    "deltamem-agents"
                )
            _check(document, MANIFEST_KINDS)
            _require(version == FORMAT_VERSION, f"there is no version {version} of the format")
            _require(document["journal"] in ("full", "hash"), f"there is no journal policy {document['journal']!r}")
            return dict(document)

    def _check_members(self) -> None:
        sums = self.manifest["sha256"]
        for name in {MANIFEST, VERSIONS, TOMBSTONES, *sums, *self._members}:
            with self._reading(f"member {name[:100]!r}"):
                state = STATE.fullmatch(name)
                _require(name in self._members, "it is missing")
                _require(bool(state) or name in (MANIFEST, VERSIONS, TOMBSTONES), "it does not belong there")
                _require(name in sums or name == MANIFEST, "the manifest does not name it")
                _require(not state or state[1] == sums[name], "its name is not its SHA-256")
        with self._reading("the list of members"):
            infos = self._zip.infolist()
            _require(len(infos) == len(self._members), "a member is there twice")
            _require(sum(info.compress_size for info in infos) < self._size, "members lie on one another")

    def _open(self, name: str) -> IO[bytes]:
        info = self._members[name]
        _require(info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size, "it is compressed")
        _require(info.file_size < self._size, f"it cannot have {info.file_size} bytes")
        return self._zip.open(info)

    def _read(self, name: str) -> bytes:
        with self._reading(name):
            with self._open(name) as member:
                data = member.read()
            _require(name == MANIFEST or checksum(data) == self.manifest["sha256"][name], "its SHA-256 is another")
            return data

    def _lines(self) -> Iterator[bytes]:
        digest = sha256()
        with self._reading(VERSIONS), self._open(VERSIONS) as member:
            for line in member:
                digest.update(line)
                yield line
            _require(digest.hexdigest() == self.manifest["sha256"][VERSIONS], "its SHA-256 is another")


@contextmanager
def _whole_file(target: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A temporary file that takes the place of ``target`` when the block ends without an error."""

    def check() -> None:
        if not overwrite and os.path.lexists(target):
            raise ArchiveError(f"{target} is there already: choose another path, or overwrite it")

    temporary = None
    try:
        check()
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".deltamem-", suffix=".part", delete=False) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
        check()
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        why = error.strerror or error
        raise ArchiveError(f"{target} cannot be written ({why}): choose another path, or make room") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _agrees(item: Dumped, tenant: str) -> bool:
    """Whether ids and checksums are those of the contents."""
    version, records, new = item
    entries = [record.entry for record in records]
    entries = [entry if entry.content is None else replace(entry, digest=None) for entry in entries]
    found = version_id(version.agent_id, version.parent, entries, version.fingerprint, version.resets, tenant)
    return found == version.version_id and all(checksum(data) == version.parts.get(n) for n, data in new.items())


def _document(version: Version, records: list[Record], new: list[str]) -> dict[str, Any]:
    """The JSON object of a version; :func:`_version` is the reverse."""
    document = {name: getattr(version, name) for name in VERSION_KINDS if name not in ("new", "entries")}
    entries = [
        {name: getattr(record.entry, name) for name in ENTRY_KINDS if name not in ("entry_id", "made_at")}
        | {"entry_id": record.entry_id, "made_at": record.made_at.isoformat()}
        for record in records
    ]
    return document | {"created_at": version.created_at.isoformat(), "new": new, "entries": entries}


def _version(document: Any, manifest: dict[str, Any]) -> tuple[Version, list[Record], list[str]]:
    """The version of a line, its records, and the sub-states that are new in it. Raises ValueError."""
    _check(document, VERSION_KINDS)
    new, entries = _texts(document.pop("new")), document.pop("entries")
    document |= {"created_at": _time(document["created_at"]), "resets": tuple(_texts(document["resets"]))}
    version = Version(agent_id=manifest["agent"], **document)
    _require(all(STATE.fullmatch(_state(str(sha))) for sha in version.parts.values()), "a part has no SHA-256")
    _require(len(new) == len(set(new)) and version.parts.keys() >= set(new), "new parts that are not its own")
    records = [_record(entry, version.version_id, manifest["journal"]) for entry in entries]
    _require(_agrees((version, records, {}), manifest["tenant"]), "its id is not that of its contents")
    return version, records, new


def _record(document: Any, version: str, journal: str) -> Record:
    _check(document, ENTRY_KINDS)
    entry_id, made_at = document.pop("entry_id"), _time(document.pop("made_at"))
    content_hash = document.pop("content_hash")
    document["sub_states"] = tuple(_texts(document["sub_states"]))
    numbers = [*(document["gate"] or {}).values(), *(document["moved"] or {}).values()]
    _require(all(type(number) in (int, float) for number in numbers), "gate or moved holds what is no number")
    kept = document["content"] is not None or document["payload"] is not None
    _require(not kept or journal == "full", "text where hashes alone are kept")
    entry = Entry(**document, digest=content_hash if document["content"] is None else None)
    _require(entry.content_hash == content_hash, f"the hash of entry {entry_id} is not that of its content")
    return Record(entry_id, version, made_at, entry)


def _check(document: Any, kinds: Kinds) -> None:
    _require(type(document) is dict, "no JSON object")
    _require(document.keys() == kinds.keys(), f"other keys: {sorted(document.keys() ^ kinds.keys())[:5]}")
    for name, kind in kinds.items():
        _require(type(document[name]) in kind, f"{name} is of another type")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _texts(value: Any) -> list[str]:
    _require(type(value) is list and all(type(text) is str for text in value), "no list of texts")
    return list(value)


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    _require(found.tzinfo is not None, f"no zone in the time {text}")
    return found


def _state(sha: str) -> str:
    return f"states/{sha}.safetensors"


def _to_json(document: Any) -> bytes:
    # Not as \\u escapes: two halves that stand side by side would be read as one character.
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _from_json(data: bytes) -> Any:
    return json.loads(data.decode("utf-8", "surrogatepass"))
