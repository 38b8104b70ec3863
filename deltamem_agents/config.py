"""Where things are on this machine: adapter folders and the default memory database. Standard library only."""

import os
from pathlib import Path

from .errors import AdapterError

DEFAULT_ADAPTER = "worldops-msw"
"""The adapter that is used when none is named."""

ADAPTERS_VARIABLE = "DELTAMEM_ADAPTERS"
STORE_VARIABLE = "DELTAMEM_STORE"
ADAPTER_CONFIG = "deltamem_config.json"


def adapter_dirs() -> list[Path]:
    """The folders that are searched for adapters, first match wins; each of them exists.

    First those of ``DELTAMEM_ADAPTERS`` (separated like ``PATH``), then the adapters that come with the package, then
    those beside the package in a source checkout.
    """
    package = Path(__file__).resolve().parent
    named = [Path(entry).expanduser() for entry in os.environ.get(ADAPTERS_VARIABLE, "").split(os.pathsep) if entry]
    found: list[Path] = []
    for folder in [*named, package / "adapters", package.parent / "adapters"]:
        if folder.is_dir() and folder not in found:
            found.append(folder)
    return found


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter, either directly or in its ``adapter`` sub-folder."""
    return (folder / "adapter" / ADAPTER_CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file()


def list_adapters() -> list[Path]:
    """Every adapter folder in :func:`adapter_dirs`, sorted within each; of two with one name, only the first."""
    found: dict[str, Path] = {}
    for directory in adapter_dirs():
        for folder in sorted(directory.iterdir()):
            if is_adapter(folder):
                found.setdefault(folder.name, folder)
    return list(found.values())


def find_adapter(name_or_path: str | Path) -> Path | None:
    """The folder of an adapter: an existing folder, else a folder of that name in :func:`adapter_dirs`.

    ``None`` when neither exists, so that the name may be the id of a model hub repository.
    Raises :class:`AdapterError` for an empty name, and for a name that is a file.
    """
    if not str(name_or_path).strip():
        raise AdapterError(f"an adapter name cannot be empty; the default is {DEFAULT_ADAPTER!r}")
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise AdapterError(f"{path} is a file; name the folder that holds {ADAPTER_CONFIG} or adapter/{ADAPTER_CONFIG}")
    if path.is_absolute() or ".." in path.parts:
        return None
    return next((d / path for d in adapter_dirs() if is_adapter(d / path)), None)


def default_store() -> str:
    """The memory database when none is named: ``DELTAMEM_STORE``, else ``~/.deltamem/memory.db``."""
    return os.environ.get(STORE_VARIABLE) or str(Path.home() / ".deltamem" / "memory.db")
