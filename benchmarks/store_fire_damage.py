"""Files that are full, locked away, deleted, damaged or something else's: a typed error each, and never wrong bytes.

The error names the file and a remedy, what was written stays, and other agents are not concerned.
"""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from store_fire_bits import failure, flips, made, pages, put, said, state
from store_fire_kill import PROCESSES

from deltamem_agents.errors import CorruptState, SchemaMismatch, StoreError, StoreUnavailable
from deltamem_agents.store import open_store

NOBODY = 65534


# A disk that is full


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system in memory of so many megabytes; for root only."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def may_mount(folder: Path) -> bool:
    if os.geteuid() != 0:
        return False
    with suppress(OSError, subprocess.CalledProcessError), small_disk(folder, 1):
        return True
    return False


def fill(path: Path, free: Callable[[], object]) -> str:
    """Write until nothing more fits; all that was written is there; after ``free()`` writing works again."""
    with open_store(path) as store:
        written: list[str] = []
        try:
            while len(written) < 2000:
                written.append(put(store, "a", f"text a {len(written)}"))
            raise AssertionError("the disk never was full")
        except StoreError as error:
            told = said(error, path, StoreUnavailable)
        assert [v.version_id for v in store.history("a")] == written[::-1]
        for i, version in enumerate(written):
            assert store.load("a", version).parts == {"facts": state(f"text a {i}")}
        failure(lambda: put(store, "a", "still full"), path, StoreUnavailable)
        free()
        more = [put(store, "a", f"text a {len(written) + i}") for i in range(5)]
        assert [v.version_id for v in store.history("a")] == [*written, *more][::-1]
        assert (problems := list(store.verify())) == [], problems
    with open_store(path) as store:
        assert store.head("a") == more[-1] and list(store.verify()) == []
    return told


def full_disk(folder: Path) -> str:
    with small_disk(folder / "small", 3) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(2**20))
        return fill(disk / "memory.db", ballast.unlink)


def full_scrub(folder: Path) -> str:
    """No space to write the file anew: the agent is deleted, its bytes go when there is space again."""
    with small_disk(folder / "small", 12) as disk:
        path, ballast = disk / "memory.db", disk / "ballast"
        word = "hippogriff"
        with open_store(path) as store:
            put(store, "a", word)
            for i in range(60):
                put(store, "b", f"text b {i}")
            store.scrub()
            ballast.write_bytes(bytes(shutil.disk_usage(disk).free - path.stat().st_size // 2))
            told = failure(lambda: store.delete("a"), path, StoreUnavailable)
            assert "still in the file" in told and store.head("a") is None
            assert store.load("b").parts == {"facts": state("text b 59")}
            ballast.unlink()
            store.scrub()
            names = [str(each) for each in disk.iterdir()]
            assert word.encode() not in subprocess.run(["cat", *names], check=True, capture_output=True).stdout
            put(store, "b", "more")
    return told


def file_limit(folder: Path) -> str:
    """No file may grow beyond a limit (RLIMIT_FSIZE), in a process of its own."""
    return apart(_file_limit, folder / "memory.db")


def _file_limit(path: Path) -> str:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    return fill(path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)))


# No permission. A process of its own: root may do anything, and becomes somebody who may not.


def apart(work: Callable[[Path], str], path: Path) -> str:
    """What ``work`` returns in another process."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_apart, args=(work, path, theirs))
    process.start()
    theirs.close()
    answer: tuple[bool, str] = ours.recv()
    process.join()
    ours.close()
    assert answer[0], answer[1]
    return answer[1]


def _apart(work: Callable[[Path], str], path: Path, pipe: Any) -> None:
    try:
        pipe.send((True, work(path)))
    except BaseException as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))


def _as_nobody() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _refused(path: Path) -> str:
    """What somebody is told who may at most read."""
    _as_nobody()
    try:
        store = open_store(path)
    except StoreError as error:
        return said(error, path, StoreUnavailable)
    with store:
        assert store.load("agent 0").parts == {"facts": state("text 0 0")}
        return failure(lambda: put(store, "agent 0", "more"), path, StoreUnavailable)


def locked_away(folder: Path, file_mode: int, folder_mode: int) -> str:
    """A store in a folder, both with these permissions, opened by somebody who is not root."""
    for parent in [folder, *folder.parents]:
        if parent.owner() == folder.owner() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    inner = folder / "inner"
    inner.mkdir()
    path = made(inner / "memory.db", 1, 1)
    if os.geteuid() == 0:
        for each in (inner, path):
            os.chown(each, NOBODY, NOBODY)
    path.chmod(file_mode)
    inner.chmod(folder_mode)
    try:
        told = apart(_refused, path)
    finally:
        inner.chmod(0o755)
        path.chmod(0o600)
    with open_store(path) as store:
        assert store.load("agent 0").parts == {"facts": state("text 0 0")}
    return told


# Files that go away, and files of others


def deleted(folder: Path) -> str:
    path = made(folder / "memory.db")
    with open_store(path) as store:
        store.load("agent 0")
        path.unlink()
        told = failure(lambda: put(store, "agent 0", "lost"), path, StoreUnavailable)
        failure(lambda: store.load("agent 0"), path, StoreUnavailable)
        failure(lambda: store.agents(), path, StoreUnavailable)
        assert not path.exists(), "an empty store was made in its place"
    return told


def replaced(folder: Path) -> str:
    path = made(folder / "memory.db")
    other = made(folder / "other.db", 1, 1)
    with open_store(path) as store:
        shutil.move(other, path)
        told = failure(lambda: put(store, "agent 0", "lost"), path, StoreUnavailable)
        failure(lambda: store.load("agent 0"), path, StoreUnavailable)
    return told


def _untouched(path: Path) -> str:
    before = path.read_bytes()
    told = failure(lambda: open_store(path), path, SchemaMismatch)
    assert path.read_bytes() == before, "the file was changed"
    return told


def other_database(folder: Path) -> str:
    path = folder / "browser.db"
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript("CREATE TABLE bookmarks (url TEXT); INSERT INTO bookmarks VALUES ('a'); ")
    return _untouched(path)


def text_file(folder: Path) -> str:
    path = folder / "notes.txt"
    path.write_text("not a database\n" * 500)
    return _untouched(path)


def newer_store(folder: Path) -> str:
    path = made(folder / "memory.db", 1, 1)
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
    return failure(lambda: open_store(path), path, SchemaMismatch)


def a_folder(folder: Path) -> str:
    path = folder / "memory.db"
    path.mkdir()
    return failure(lambda: open_store(path), path, StoreUnavailable)


# Damage


def flipped_state(folder: Path) -> str:
    """A byte of one agent's state: this version is refused, all else is there."""
    path = made(folder / "memory.db")
    whole = state("text 2 3")
    data = path.read_bytes()
    at = data.index(whole[5000:5100])
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))
    with open_store(path) as store:
        head = store.head("agent 2")
        told = failure(lambda: store.load("agent 2"), path, CorruptState)
        assert "'agent 2'" in told and str(head) in told
        assert store.load("agent 2", store.version("agent 2", head).parent).parts == {"facts": state("text 2 2")}
        for a in (0, 1, 3, 4):
            assert store.load(f"agent {a}").parts == {"facts": state(f"text {a} 3")}
        problems = list(store.verify())
        assert [(p.agent_id, p.version_id) for p in problems] == [("agent 2", head)], problems
    return told


def if_mountable(scene: Callable[[Path], str]) -> Callable[[Path], str | None]:
    return lambda folder: scene(folder) if may_mount(folder / "try") else None


SCENES: dict[str, Callable[[Path], str | None]] = {
    "disk full": if_mountable(full_disk),
    "disk full while what was deleted is erased": if_mountable(full_scrub),
    "file may not grow": file_limit,
    "file read-only": lambda folder: locked_away(folder, 0o444, 0o755),
    "folder read-only": lambda folder: locked_away(folder, 0o644, 0o555),
    "file of somebody else": lambda folder: locked_away(folder, 0o000, 0o755),
    "folder of somebody else": lambda folder: locked_away(folder, 0o600, 0o000),
    "file deleted while open": deleted,
    "file replaced while open": replaced,
    "file of another application": other_database,
    "text file": text_file,
    "store of a newer library": newer_store,
    "folder in its place": a_folder,
    "byte flipped in a state": flipped_state,
}


def damage(folder: Path, *, flip: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Every scene, what is said in it; every page of a store overwritten; ``flip`` single bits flipped."""
    said_in: dict[str, str | None] = {}
    for number, (name, scene) in enumerate(SCENES.items()):
        (folder / str(number)).mkdir()
        said_in[name] = scene(folder / str(number))
    found: dict[str, Any] = {"scenes": said_in}
    for name, work in (("pages", lambda at: pages(at, seed=seed)), ("bits", lambda at: flips(at, flip, seed))):
        (folder / name).mkdir()
        found[name] = work(folder / name)
    return found
