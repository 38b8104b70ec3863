"""The shape of the code, held mechanically: who imports whom, how long things are, what is kept out."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import deltamem_agents

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deltamem_agents"
NAME = PACKAGE.name

# A part of the package -> the parts that it may import. Itself, config and errors always go.
LAYERS = {
    "errors": set(),
    "config": set(),
    "progress": set(),
    "content": set(),
    "ops": set(),
    "memory": {"ops"},
    "engine": {"memory", "content"},
    "store": set(),
    "chat_model": {"engine", "memory", "store"},
    "graph": {"chat_model", "engine", "store"},
    "training": {"memory", "ops", "content"},
    "evals": {"training", "engine", "memory", "store", "chat_model", "graph"},
    "cli": {"ops", "memory", "engine", "store", "chat_model", "graph", "training", "evals"},
    "__init__": {"memory", "engine", "store", "chat_model", "graph"},
}
SHARED = {"config", "errors", "progress", "__init__"}

# A library -> the only parts that import it.
LIBRARIES = {
    "transformers": {"memory", "engine", "training", "evals"},
    "tokenizers": {"content", "memory", "engine", "training", "evals"},
    "langchain": {"chat_model", "graph", "cli", "evals"},
    "langgraph": {"chat_model", "graph", "cli", "evals"},
    "sqlalchemy": {"store"},
    "torch": set(LAYERS) - {"store", "config", "errors", "progress", "__init__"},
}
OPTIONAL = ("langchain_core", "langgraph", "sqlalchemy", "pydantic")
WITHOUT_OPTIONAL = ("", "ops", "memory", "engine", "training", "evals")

MOST_LINES, MOST_FUNCTION_LINES, MOST_BYTES = 400, 60, 1_000_000

# Written in halves, so that this file does not find itself.
FORBIDDEN = tuple(
    first + second
    for first, second in (
        ("/wo", "rk/"),
        ("/fa", "rm/"),
        ("/ro", "ot/"),
        ("/opt/", "pypi"),
        ("/opt/", "wheels"),
        (".lib", "rary/"),
        ("sub", "agent"),
        ("before", "-stop"),
        ("this ", "session"),
    )
)

# Makes modules look as if they were not installed, then imports one.
IMPORT_WITHOUT = """
import importlib, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

module, *blocked = sys.argv[1:]
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
importlib.import_module(module)
print(*sorted(sys.modules))
"""


def python_files(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to: its folder or module directly below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and absolute name of all that a file imports, wherever in it; for "from a import b" that is a.b."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def parts_imported(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and part, for the imports from the package itself; a public name counts as the part that it comes from."""
    for line, name in imported(path, tree):
        package, _, rest = name.partition(".")
        if package == NAME:
            part = rest.partition(".")[0]
            yield line, part if part in LAYERS else deltamem_agents._HOMES.get(part, "__init__")


def run_python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Name and text of each file under version control; files that are gone, large or binary are passed over."""
    try:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, names.split("\0")):
        path = ROOT / name
        if path.is_file() and path.stat().st_size <= MOST_BYTES:
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_every_part_has_its_place() -> None:
    found = {part_of(path) for path, _ in python_files(NAME)}
    assert found <= set(LAYERS), "a new part of the package needs a row in LAYERS"


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path, _ in python_files(NAME)}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {part}"
        for path, tree in python_files(NAME)
        for line, part in parts_imported(path, tree)
        if part not in LAYERS[part_of(path)] | SHARED | {part_of(path)}
    ]
    assert wrong == []


def test_libraries_stay_in_their_parts() -> None:
    wrong = []
    for path, tree in python_files(NAME):
        for line, name in imported(path, tree):
            library = name.partition(".")[0]
            family = "langchain" if library.startswith("langchain") else library
            if part_of(path) not in LIBRARIES.get(family, set(LAYERS)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("part", WITHOUT_OPTIONAL)
def test_imports_without_the_agent_libraries(part: str) -> None:
    if not any((PACKAGE / part).glob("*.py")):
        pytest.skip(f"no {NAME}.{part}")
    done = run_python(IMPORT_WITHOUT, f"{NAME}.{part}".rstrip("."), *OPTIONAL)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = run_python(f"import sys, {NAME}, {NAME}.config; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"torch", "transformers", "numpy", *OPTIONAL})


def test_files_and_functions_stay_short() -> None:
    long = []
    for path, tree in python_files(NAME, "tests", "benchmarks", "examples"):
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MOST_LINES:
            long.append(f"{path.relative_to(ROOT)} ({lines})")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} ({lines})")
    assert long == []


def test_torch_load_reads_weights_only() -> None:
    unsafe = []
    for path, tree in python_files(NAME, "tests", "benchmarks", "examples"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if given.get("weights_only") != "True":
                    unsafe.append(f"{path.relative_to(ROOT)}:{node.lineno}")
        unsafe += [f"{path.relative_to(ROOT)}:{line}" for line, name in imported(path, tree) if name == "torch.load"]
    assert unsafe == []


def test_files_speak_of_the_project_only() -> None:
    odd = [f"{name}: {word}" for name, text in tracked_texts() for word in FORBIDDEN if word in text]
    assert odd == []


@pytest.mark.parametrize(
    ("file", "code", "names"),
    [
        ("memory/layer.py", "from ..ops import scan", ["ops"]),
        ("memory/layer.py", "from .. import errors, attach, __version__", ["errors", "memory", "__init__"]),
        ("memory/__init__.py", "from .state import MemoryState", ["memory"]),
        ("training/world/talk.py", "def f():\n    from ...engine.text import x", ["engine"]),
        ("cli/app.py", "import deltamem_agents.store.sql as s", ["store"]),
        ("__init__.py", "from .graph import DeltaMemWriter", ["graph"]),
        ("ops/scan.py", "import os, torch\nfrom torch import nn", []),
    ],
)
def test_the_reading_of_imports(file: str, code: str, names: list[str]) -> None:
    assert [part for _, part in parts_imported(PACKAGE / file, ast.parse(code))] == names


def test_blocked_modules_are_missed() -> None:
    done = run_python(IMPORT_WITHOUT, "pydantic", "pydantic")
    assert done.returncode != 0
    assert "No module named 'pydantic'" in done.stderr
