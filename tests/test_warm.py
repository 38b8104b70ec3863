"""Forked processes do what new ones do, and have the libraries already, whatever else was imported."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import warm

SCRIPT = """
import atexit, os, sys
atexit.register(print, "at the end")
print(input(), sys.argv, __name__, os.environ["ONLY"], "PATH" in os.environ, os.getcwd())
print("wrong", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("way", ["-c", "script.py", "-m"])
def test_the_same_as_a_new_interpreter(tmp_path: Path, way: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    start = {"-c": ["-c", SCRIPT], "script.py": ["script.py"], "-m": ["-m", "json.tool"]}[way]
    command, env = [*start, "--indent", "1"], {"ONLY": "ö"}
    new = subprocess.run(
        [sys.executable, "-X", "utf8", *command],
        input='"said"\n', capture_output=True, encoding="utf-8", env=env, cwd=tmp_path,
    )  # fmt: skip
    forked = warm.python(*command, say='"said"\n', env=env, cwd=tmp_path)
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)
    assert new.stdout.startswith('"said"') and new.returncode == (0 if way == "-m" else 3), new.stderr


def test_errors_and_signals_end_it() -> None:
    failed = warm.python("-c", "print('before'); 1 / 0")
    assert (failed.returncode, failed.stdout) == (1, "before\n")
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert warm.python("-c", "import os; os.kill(os.getpid(), 9)").returncode == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired) as late:
        warm.python("-c", "import time; print('soon', flush=True); time.sleep(60)", timeout=1)
    assert late.value.stdout == b"soon\n"


def test_the_libraries_are_there() -> None:
    """Another module may have asked for a server of its own, which is then that of all tests."""
    looked = warm.python("-c", f"import sys; print(set({warm.LIBRARIES}) - set(sys.modules))")
    assert looked.stdout == "set()\n", looked.stderr


def test_what_one_imports_the_next_does_not_have() -> None:
    code = "import sys; print('wave' in sys.modules); import wave"
    assert [warm.python("-c", code).stdout for _ in range(2)] == ["False\n"] * 2
