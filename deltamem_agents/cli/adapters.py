"""``deltamem adapters``: which adapters are here, and what one is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import ADAPTER_CONFIG, ADAPTERS_VARIABLE, DEFAULT_ADAPTER, find_adapter, list_adapters
from ..errors import AdapterError
from .options import examples, table

app = typer.Typer(
    help="List the adapters of this machine, and show one.",
    no_args_is_help=True,
    epilog=examples("deltamem adapters list", "deltamem adapters show worldops-msw"),
)


@app.command("list", epilog=examples("deltamem adapters list", "DELTAMEM_ADAPTERS=runs deltamem adapters list"))
def list_all() -> None:
    """Adapters that can be named without a path."""
    rows = []
    for folder in list_adapters():
        document = _document(folder)
        name = folder.name + (" (default)" if folder.name == DEFAULT_ADAPTER else "")
        rows.append((name, str(document.get("rank", "?")), _layout(document), str(folder)))
    if rows:
        table("Adapters", ("name", "rank", "sub-states", "folder"), rows)
    else:
        typer.echo(f"No adapters here. Set {ADAPTERS_VARIABLE} to a folder of adapters, or train one: deltamem train")


@app.command(epilog=examples("deltamem adapters show worldops-msw", "deltamem adapters show runs/worldops"))
def show(name: Annotated[str, typer.Argument(help="Name or folder of an adapter.")] = DEFAULT_ADAPTER) -> None:
    """What an adapter is: its fields, its size, its fingerprint and its backbone."""
    folder = find_adapter(name)
    if folder is None:
        known = ", ".join(path.name for path in list_adapters()) or "none"
        raise AdapterError(f"no adapter {name!r} here; known are: {known}. Give one of them, or a folder")

    from ..memory import load_adapter

    adapter = load_adapter(folder / "adapter" if (folder / "adapter").is_dir() else folder)
    rows = [
        ("folder", str(folder)),
        ("fingerprint", adapter.fingerprint),
        ("parameters", f"{adapter.num_parameters():,} in {len(adapter.layers)} layers"),
        ("backbone", _backbone(folder, adapter.backbone)),
    ]
    rows += [(key, _text(value)) for key, value in adapter.config.to_dict().items()]
    table(f"Adapter {folder.name}", ("field", "value"), rows)


def _document(folder: Path) -> dict[str, Any]:
    inner = folder / "adapter" / ADAPTER_CONFIG
    try:
        document = json.loads((inner if inner.is_file() else folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter in {folder} cannot be read ({error}): fetch or train it again") from error
    return document if isinstance(document, dict) else {}


def _layout(document: Mapping[str, Any]) -> str:
    layout = document.get("sub_states") or {"shared": range(int(document.get("num_state_heads", 1)))}
    return ", ".join(f"{name} ({len(heads)} heads)" for name, heads in layout.items())


def _backbone(folder: Path, named: str | None) -> str:
    config = folder / "backbone" / "config.json"
    if not config.is_file():
        return named or "not named"
    fields = json.loads(config.read_text(encoding="utf-8"))
    wanted = {"hidden_size": "wide", "num_hidden_layers": "layers", "max_position_embeddings": "tokens of context"}
    sizes = [f"{fields[key]} {word}" for key, word in wanted.items() if key in fields]
    return f"{fields.get('model_type', 'a model')} in {folder / 'backbone'} ({', '.join(sizes)})"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_text(item)}" for key, item in value.items()) or "-"
    return (", ".join(map(str, value)) or "-") if isinstance(value, list | tuple) else str(value)
