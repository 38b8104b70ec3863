"""``deltamem agents forget``: single messages go from the journal, from the file and from every state."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import StoreError
from .opening import agent_memory, open_there
from .options import (
    DEFAULT,
    TENANT,
    AdapterOption,
    AgentArgument,
    JsonOption,
    SinceOption,
    SourceOption,
    StoreOption,
    SubStateOption,
    TenantOption,
    UntilOption,
    YesOption,
    agree,
    examples,
)
from .results import print_json, print_messages, progress_bar

if TYPE_CHECKING:
    from ..chat_model.replay import Forgotten
    from ..store import Filter, Record, Store

app = typer.Typer()


@app.command(
    epilog=examples(
        "deltamem agents forget otto --text 'desk of Mira' --dry-run",
        "deltamem agents forget otto --id 0f3a77b1c2d4e5f6 --yes",
        "deltamem agents forget otto --source mira --since 2026-01-31 --until 2026-02-01",
    )
)
def forget(
    agent: AgentArgument,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Id of an entry or message (repeatable).")] = None,
    source: SourceOption = None,
    thread: Annotated[str | None, typer.Option(help="Messages of this conversation.", metavar="ID")] = None,
    sub_state: SubStateOption = None,
    text: Annotated[str | None, typer.Option(help="Messages that contain this, in any case.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be forgotten, and stop.")] = False,
    yes: YesOption = False,
    adapter: AdapterOption = DEFAULT,
    store: StoreOption = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Forget the messages that meet all conditions: their rows, and every state that held them, on all branches.

    The states are computed again without them, by the adapter that made them. There is no way back.
    """
    from ..store import Filter

    where = Filter(ids or None, source, thread, sub_state, text, since, until)
    if where == Filter():
        raise StoreError(f"which messages of agent {agent!r}? Give --id, --source, --text, …; agents delete takes all")
    opened = open_there(store, tenant)
    opened.agent(agent)
    records = opened.records(agent, where)
    if dry_run and as_json:
        print_json({"agent": agent, "would_forget": records})
        return
    if not as_json:
        _list("Would be forgotten" if dry_run else "To be forgotten", agent, records)
    if dry_run:
        return
    count = f"{len(records)} message{'' if len(records) == 1 else 's'}"
    if records:
        agree(f"Forget {count} of {agent}, for good?", yes, f"{count} of agent {agent!r} not forgotten")
    gone = _forget(opened, agent, where, adapter) if records else None
    versions = gone.versions if gone else 0
    if as_json:
        print_json({"agent": agent, "entries": gone.entries if gone else 0, "versions": versions})
    elif gone:
        typer.echo(f"forgotten: {count}; versions without them were written in the place of {versions}")


def _list(title: str, agent: str, records: "list[Record]") -> None:
    if records:
        print_messages(f"{title}: {len(records)}", records, "entry", [record.entry_id for record in records])
    else:
        typer.echo(f"No message of {agent} fits: nothing to forget.")


def _forget(store: "Store", agent: str, where: "Filter", adapter: str) -> "Forgotten":
    memory = agent_memory(store, adapter)
    head = store.head(agent)
    if head is not None:
        memory.check(store.version(agent, head))

    from ..chat_model.replay import forget as forget_entries

    with progress_bar(f"writing {agent} again") as done:
        return forget_entries(memory, agent, where, done)
