"""A PostgreSQL server of the tests' own: in a temporary folder, on a free port, gone at the end."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

PACKAGE = "Debian package postgresql"
PATIENCE = 60.0  # seconds to start or stop
SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# Its input ends when the test run does, however that ends: then the server and its files go.
REAPER = """
cat
if [ -f "$1/data/postmaster.pid" ]; then kill -QUIT "$(head -n 1 "$1/data/postmaster.pid")"; sleep 1; fi
rm -rf "$1"
"""

# Role "checked" needs its password, anybody else none.
ACCESS = """
local all all trust
host all checked 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""


class Missing(Exception):
    """No server can be started on this machine."""


def binaries() -> Path:
    """The folder with initdb and postgres: on the PATH, or where Debian puts them (the newest)."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(debian, key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise Missing(f"no PostgreSQL server on this machine: install {PACKAGE}")


def server_user() -> dict[str, Any]:
    """Whom the server runs as, for subprocess: ourselves, or somebody without rights when we are root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise Missing("PostgreSQL does not run as root, and there is no user postgres or nobody")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Made by the constructor, started by :meth:`start`; :meth:`remove` leaves nothing, nor does an interrupted run."""

    def __init__(self) -> None:
        self.bin = binaries()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._as = server_user()
        self.folder = Path(tempfile.mkdtemp(prefix="deltamem-pg-"))
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", REAPER, "reaper", self.folder],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        if self._as:
            os.chown(self.folder, self._as["user"], self._as["group"])
        self.data = self.folder / "data"
        options = "--auth=trust --encoding=UTF8 --locale=C.UTF-8 --data-checksums --no-sync --username=postgres"
        done = subprocess.run(
            [self.bin / "initdb", *options.split(), "-D", self.data],
            cwd=self.folder, capture_output=True, text=True, **self._as,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (self.data / "pg_hba.conf").write_text(ACCESS)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server, where it was before; returns when it takes connections."""
        assert not self.running
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "shared_buffers": "32MB",
            "fsync": "on",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, *options],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._as,
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        import psycopg

        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if not self.running or time.monotonic() > end:
                    raise AssertionError(f"PostgreSQL did not start:\n{self.log()}") from None
                time.sleep(0.02)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: "fast" rolls back what is open, "immediate" is a crash."""
        if self._process is not None and self.running:
            self._process.send_signal(SIGNALS[mode])
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the administrator, outside a transaction; its rows, if it has any."""
        import psycopg

        where = f"host={self.folder} port={self.port} user=postgres dbname={database} connect_timeout=10"
        with psycopg.connect(where, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str | None = None) -> str:
        """Make an empty database; its URL."""
        database = database or f"t{uuid4().hex}"
        self.execute(f'CREATE DATABASE "{database}"')
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def drop(self, url: str) -> None:
        """Drop a database, whoever is still connected."""
        self.execute(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)')

    def remove(self) -> None:
        """Stop the server and delete its files."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._reaper.communicate()
