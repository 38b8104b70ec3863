"""``deltamem chat``: talk to an agent. Each message is sent alone; what was said before is in the agent's memory."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DeltaMemError
from .options import DEFAULT, AdapterOption, StoreOption, examples, quiet_libraries, table

if TYPE_CHECKING:
    from ..chat_model import DeltaMemChatModel

EXAMPLES = examples(
    "deltamem chat --agent otto",
    "deltamem chat --agent otto --store memory.db",
    "echo 'The port of atlas is 4821.' | deltamem chat",
    "echo 'What is the port of atlas?' | deltamem chat",
    "echo 'What is the port of atlas?' | deltamem chat --no-memory",
)
HELP = """\
/memory              versions, sub-states and the last messages of this agent's memory
/reset [SUB-STATE]   empty one sub-state, or all of them (earlier versions stay in the store)
/agents              the agents of this store
/help                this text
/quit                leave (also Ctrl-D)"""
SHOWN = 8  # versions and messages that /memory lists


def chat(
    agent: Annotated[str, typer.Option(help="Whose memory to use.")] = "default",
    adapter: AdapterOption = DEFAULT,
    store: StoreOption = None,
    memory: Annotated[bool, typer.Option(help="--no-memory asks the frozen model alone; nothing is kept.")] = True,
) -> None:
    """Talk to an agent that remembers. Each message is sent alone: the rest comes from its memory."""
    quiet_libraries()

    from ..chat_model import DeltaMemChatModel

    model = DeltaMemChatModel(adapter=adapter, store=store, agent_id=agent, use_memory=memory)
    if memory:
        model.load_state(agent)  # what is wrong with adapter, store or memory shows at once
    else:
        model.engine  # noqa: B018
    if sys.stdin.isatty():
        typer.echo(f"{agent}, {adapter}{'' if memory else ', without memory'}. /help lists the commands.")
    try:
        for line in _lines():
            if line.startswith("/"):
                if _command(line, model, agent):
                    break
            elif line:
                _answer(line, model)
    except KeyboardInterrupt:
        typer.echo()


def _lines() -> Iterator[str]:
    """What the user types, or the lines of a pipe, to their end."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.strip()
        return
    import readline  # noqa: F401 - gives input() its history

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            typer.echo()
            return


def _answer(text: str, model: "DeltaMemChatModel") -> None:
    """Print the answer as it comes. Ctrl-C ends it; then this turn is not remembered."""
    try:
        for chunk in model.stream(text):
            typer.echo(chunk.text, nl=False)
        typer.echo()
    except KeyboardInterrupt:
        typer.echo(" … stopped, not remembered")
        if not sys.stdin.isatty():
            raise
    except DeltaMemError as error:
        typer.echo(f"deltamem: {error}", err=True)


def _command(line: str, model: "DeltaMemChatModel", agent: str) -> bool:
    """Do what a line with a slash says; whether it was to leave."""
    name, *arguments = line[1:].split()[:2] or [""]
    if name in ("quit", "exit"):
        return True
    if name == "help":
        typer.echo(HELP)
    elif name not in ("memory", "reset", "agents"):
        typer.echo(f"no command /{name}; /help lists them", err=True)
    elif name == "agents":
        from .results import print_agents

        print_agents(model.opened_store)
    elif not model.use_memory:
        typer.echo("there is no memory with --no-memory", err=True)
    elif name == "reset":
        _reset(model, agent, arguments[0] if arguments else None)
    else:
        _show_memory(model, agent)
    return False


def _reset(model: "DeltaMemChatModel", agent: str, sub_state: str | None) -> None:
    try:
        version = model.reset(agent, sub_state)
    except DeltaMemError as error:
        typer.echo(f"deltamem: {error}", err=True)
    else:
        typer.echo(f"{sub_state or 'everything'} is empty now (version {version[:12]})")


def _show_memory(model: "DeltaMemChatModel", agent: str) -> None:
    from .results import print_memory

    store = model.opened_store
    if store.head(agent) is None:
        typer.echo(f"{agent} remembers nothing yet")
        return
    state = model.load_state(agent)
    rows = []
    for name, heads in state.sub_states.items():
        tensors = state.select(name).tensors.values()
        norm = sum(float(t.square().sum()) for t in tensors) ** 0.5
        rows.append((name, str(len(heads)), f"{norm:.2f}", "empty" if norm == 0 else ""))
    table(f"Memory of {agent}", ("sub-state", "heads", "norm", ""), rows)
    print_memory(store, agent, SHOWN)
