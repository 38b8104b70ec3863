"""Processes that need not import the large libraries: one server imports them once and forks a process for each use.

They are processes like any other, with a pid, streams, an environment and an exit code of their own, which can be
killed. What shows only where nothing is imported yet needs a new interpreter, as ``subprocess`` starts it.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

# The command line is left out: it reads the environment when it is imported.
LIBRARIES = [
    "deltamem_agents.graph",
    "deltamem_agents.store.sql",
    "langchain.agents",
    "langgraph.checkpoint.sqlite.aio",
    "transformers",
]
context = multiprocessing.get_context("forkserver")  # its server never computes, so it has no threads to lose


def preload() -> None:
    """Say what the server imports when it starts: Python has one for a whole process, and the last who asks decides."""
    context.set_forkserver_preload(LIBRARIES)


preload()


def python(
    *arguments: str | Path,
    say: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120,
) -> "subprocess.CompletedProcess[str]":
    """What ``python ARGUMENTS`` does: a script, ``-m`` and a module or ``-c`` and code, then what it finds in argv.

    ``say`` is all of its stdin; ``env`` (None: ours) its whole environment, which PYTHON* variables of it come too
    late for. Raises subprocess.TimeoutExpired when it takes more than ``timeout`` seconds; it is killed then.
    """
    words = [str(argument) for argument in arguments]
    with TemporaryDirectory() as name:
        stdin, stdout, stderr = (Path(name, stream) for stream in ("stdin", "stdout", "stderr"))
        stdin.write_text(say, encoding="utf-8")
        streams = (str(stdin), str(stdout), str(stderr))
        given = (words, streams, dict(os.environ if env is None else env), str(cwd or Path.cwd()))
        process = context.Process(target=_run, args=given)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout, stdout.read_bytes(), stderr.read_bytes())
        said, wrong = (path.read_text("utf-8") if path.exists() else "" for path in (stdout, stderr))
        code = process.exitcode
        process.close()
    return subprocess.CompletedProcess([sys.executable, *words], code, said, wrong)


def _run(words: list[str], streams: tuple[str, str, str], env: dict[str, str], folder: str) -> None:
    for number, (path, flags) in enumerate(zip(streams, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), strict=True)):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    try:
        _main(words)
    finally:
        atexit._run_exitfuncs()  # processes of multiprocessing leave these out


def _main(words: list[str]) -> None:
    """Run the code as ``__main__``."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.modules["__main__"] = module = ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), module.__dict__)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
