"""The package as a whole: version, public names, where adapters and the database are looked for, what a wheel holds."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import deltamem_agents
from deltamem_agents import config
from deltamem_agents.errors import AdapterError

ROOT = Path(__file__).resolve().parents[1]


def make_adapter(folder: Path, inner: str = "adapter") -> Path:
    (folder / inner).mkdir(parents=True)
    (folder / inner / "deltamem_config.json").write_text("{}")
    return folder


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders in DELTAMEM_ADAPTERS, a package and a checkout without adapters, and an empty working directory."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in (*folders, tmp_path / "checkout" / "deltamem_agents", tmp_path / "here"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "checkout" / "deltamem_agents" / "config.py"))
    monkeypatch.setenv("DELTAMEM_ADAPTERS", os.pathsep.join(map(str, folders)))
    monkeypatch.chdir(tmp_path / "here")
    return folders


def test_version_agrees_with_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert deltamem_agents.__version__ == project["version"]


@pytest.mark.parametrize("name", deltamem_agents.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(deltamem_agents, name) is not None
    assert name in dir(deltamem_agents)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = deltamem_agents.no_such_name


def test_every_public_name_has_a_home() -> None:
    assert {*deltamem_agents._HOMES, "__version__"} == set(deltamem_agents.__all__)


def test_adapter_dirs_in_order(places: list[Path], tmp_path: Path) -> None:
    assert config.adapter_dirs() == places
    beside, inside = tmp_path / "checkout" / "adapters", tmp_path / "checkout" / "deltamem_agents" / "adapters"
    beside.mkdir()
    inside.mkdir()
    assert config.adapter_dirs() == [*places, inside, beside]


def test_adapter_dirs_without_the_variable(places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTAMEM_ADAPTERS")
    assert config.adapter_dirs() == []


def test_adapter_dirs_skips_what_is_empty_missing_or_twice(places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    entries = ["", str(places[0]), str(places[0] / "missing"), str(places[0])]
    monkeypatch.setenv("DELTAMEM_ADAPTERS", os.pathsep.join(entries))
    assert config.adapter_dirs() == [places[0]]


@pytest.mark.parametrize("inner", ["adapter", "."])
def test_find_adapter_by_name(places: list[Path], inner: str) -> None:
    folder = make_adapter(places[1] / "mine", inner)
    assert config.find_adapter("mine") == folder
    assert config.list_adapters() == [folder]


def test_the_first_folder_wins(places: list[Path]) -> None:
    make_adapter(places[1] / "mine")
    other = make_adapter(places[1] / "other")
    first = make_adapter(places[0] / "mine")
    assert config.find_adapter("mine") == first
    assert config.list_adapters() == [first, other]


def test_find_adapter_by_path(places: list[Path], tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "elsewhere")
    assert config.find_adapter(folder) == folder
    assert config.find_adapter(str(folder)) == folder
    assert config.find_adapter("../elsewhere") == Path("../elsewhere")


def test_what_is_not_here_may_be_a_hub_id(places: list[Path]) -> None:
    (places[0] / "recipe-only").mkdir()
    assert config.find_adapter("someone/some-adapter") is None
    assert config.find_adapter("recipe-only") is None
    assert config.find_adapter(places[0] / "missing") is None
    assert config.find_adapter("../first/recipe-only/../missing") is None


def test_find_adapter_refuses_files_and_empty_names(places: list[Path], tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    with pytest.raises(AdapterError, match=r"weights\.safetensors is a file"):
        config.find_adapter(weights)
    for name in ("", "  "):
        with pytest.raises(AdapterError, match=config.DEFAULT_ADAPTER):
            config.find_adapter(name)


def test_default_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DELTAMEM_STORE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert config.default_store() == str(tmp_path / ".deltamem" / "memory.db")
    monkeypatch.setenv("DELTAMEM_STORE", "sqlite:///other.db")
    assert config.default_store() == "sqlite:///other.db"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hatchling") is None, reason="building a wheel here needs hatchling")
def test_wheel_contents(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("deltamem_agents-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    tracked = subprocess.run(
        ["git", "ls-files", "deltamem_agents", "adapters"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "deltamem = deltamem_agents.cli.app:main" in entry_points
    assert "deltamem_agents/py.typed" in names
    for name in tracked:
        assert (f"deltamem_agents/{name}" if name.startswith("adapters/") else name) in names
    assert {name.split("/")[0] for name in names} == {
        "deltamem_agents",
        f"deltamem_agents-{deltamem_agents.__version__}.dist-info",
    }
