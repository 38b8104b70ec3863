"""Chat models and embeddings of others, by what is written on a command line.

    openai:text-embedding-3-small    provider:model, as LangChain's init_chat_model and init_embeddings read it
    mine.py:make                     a function without arguments in a Python file
    package.module:make              one in a module that can be imported; its name has a dot, a provider's has none

A function makes the model, a class is called as one.
"""

import runpy
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import DeltaMemError

PROVIDER = "PROVIDER:MODEL|FILE.py:FUNCTION|PACKAGE.MODULE:FUNCTION"


def open_embeddings(spec: str) -> Any:
    """Embeddings of LangChain, with ``embed_documents`` and ``embed_query``; see the module.

    Raises:
        DeltaMemError: ``spec`` is of none of the three forms, a library is missing, nothing is found or can be made
            there, or what is made has not these methods.
    """
    return _open(spec, "embeddings", "langchain.embeddings", "init_embeddings", ("embed_documents", "embed_query"))


def open_judge(spec: str) -> Any:
    """A chat model of LangChain, with ``invoke``; one that LangChain makes is at temperature 0.

    Raises:
        DeltaMemError: as :func:`open_embeddings`.
    """
    return _open(spec, "judge", "langchain.chat_models", "init_chat_model", ("invoke",), temperature=0)


def identity(model: Any) -> list[str]:
    """Class and name of a model: results are resumed by it."""
    name = getattr(model, "model_name", None) or getattr(model, "model", None)
    return [type(model).__name__, str(name)]


def _open(spec: str, what: str, module: str, function: str, methods: Sequence[str], **options: Any) -> Any:
    place, _, name = spec.partition(":") if ".py:" not in spec else spec.rpartition(":")
    if not place.strip() or not name.strip():
        raise DeltaMemError(f"{what} {spec!r}: give {PROVIDER}")
    try:
        made = _function(place, name)() if "." in place else _langchain(module, function)(spec, **options)
    except DeltaMemError as error:
        raise DeltaMemError(f"{what} {spec!r}: {error}") from error
    except Exception as error:  # whatever the code of others raises
        raise DeltaMemError(
            f"{what} {spec!r} cannot be made ({type(error).__name__}: {error}): check the name, the key and the "
            "package of the provider, or call the function by itself"
        ) from error
    if lacking := [method for method in methods if not callable(getattr(made, method, None))]:
        raise DeltaMemError(f"{what} {spec!r} is a {type(made).__name__} without {lacking[0]}: give one of LangChain")
    return made


def _function(place: str, name: str) -> Any:
    """What has this name in a file or module."""
    file = Path(place).expanduser()
    if file.suffix == ".py" and not file.is_file():
        raise DeltaMemError(f"no file {file}; give the path of one")
    try:
        found = runpy.run_path(str(file)) if file.suffix == ".py" else vars(import_module(place))
    except ModuleNotFoundError as error:
        raise DeltaMemError(f"{error}; install it, or give the path of a file as FILE.py:FUNCTION") from error
    if not callable(found.get(name)):
        raise DeltaMemError(f"{place} has no function {name!r}; write one that makes the model")
    return found[name]


def _langchain(module: str, function: str) -> Any:
    try:
        return getattr(import_module(module), function)
    except ImportError as error:
        raise DeltaMemError(
            f'PROVIDER:MODEL needs langchain ({error}): pip install "deltamem-agents[langchain]" and the package of '
            "the provider, or give FILE.py:FUNCTION"
        ) from error
