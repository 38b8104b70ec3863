"""The tools of the world: their declarations, and calls with results.

Lookups return facts as JSON; actions return a short result. Declarations are what LangChain's ``bind_tools`` sends.
"""

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from . import words as w
from .facts import BY_ENTITY, Fact, Kind, new_entity

Tool = dict[str, Any]


def _tool(tool: str, description: str, /, **parameters: str) -> Tool:
    properties = {key: {"description": text, "type": "string"} for key, text in parameters.items()}
    schema = {"properties": properties, "required": list(parameters), "type": "object"}
    return {"type": "function", "function": {"name": tool, "description": description, "parameters": schema}}


LOOKUPS = {
    "service": _tool("get_service", "Look up a service.", name="Name of the service."),
    "person": _tool("get_person", "Look up a colleague.", name="Name of the colleague."),
    "project": _tool("get_project", "Look up a project.", name="Name of the project."),
    "team": _tool("get_team", "Look up a team.", name="Name of the team."),
    "customer": _tool("get_customer", "Look up a customer.", name="Name of the customer."),
    "ticket": _tool("get_ticket", "Look up a ticket.", name="Number of the ticket."),
}
RESTART = _tool("restart_service", "Restart a service.", name="Name of the service.")
OPEN_TICKET = _tool("open_ticket", "Open a ticket.", title="What it is about.", priority="low, medium or high.")
SEND = _tool("send_message", "Send a message to a colleague.", to="Name of the colleague.", text="The message.")
TOOLS: tuple[Tool, ...] = (*LOOKUPS.values(), RESTART, OPEN_TICKET, SEND)

_LOOK_UP = ("Look up {e}.", "Please look up {e}.", "Check the record of {e}.", "Fetch the details of {e}, please.")
_RESTART = ("Restart {e}.", "Please restart {e}.", "Restart the service {e} now.", "Can you restart {e}?")
_OPEN = ("Open a ticket: {t}. Priority {p}.", "Please open a {p} priority ticket: {t}.", "File a {p} ticket: {t}.")
_SEND = ("Tell {e}: {t}.", "Send {e} a message: {t}.", "Write to {e}: {t}.", "Message {e}: {t}.")
_TITLES = ("{s} is down", "{s} is slow", "disk full on {s}", "update the keys of {s}", "tests fail for {s}")
_TEXTS = ("the deploy of {s} is done", "{s} is back", "please review {s}", "call me about {s}", "{s} needs you")


@dataclass(frozen=True)
class ToolTurn:
    """A request, the call it asks for, the tool's result and the closing answer; ``facts`` are what the result states."""

    tool: Tool
    request: str
    arguments: dict[str, str]
    result: str
    answer: str
    facts: tuple[Fact, ...] = ()

    @property
    def call(self) -> dict[str, Any]:
        """The assistant message that calls the tool."""
        function = {"name": self.tool["function"]["name"], "arguments": self.arguments}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Request, call, result and answer."""
        return [
            {"role": "user", "content": self.request},
            self.call,
            {"role": "tool", "content": self.result},
            {"role": "assistant", "content": self.answer},
        ]


def lookup(rng: Random, entity: str, facts: list[Fact]) -> ToolTurn:
    """Look ``entity`` up; the result states ``facts``, which are all of it."""
    name = entity.removeprefix("the ").removesuffix(" team").removeprefix("project ")
    kind = facts[0].kind.entity
    fields = {kind: name} | {fact.kind.key: fact.value for fact in facts}
    told = "; ".join(f"{fact.kind.nouns[0]} {fact.value}" for fact in facts)
    request = rng.choice(_LOOK_UP).format(e=entity)
    result = json.dumps(fields, ensure_ascii=False)
    return ToolTurn(LOOKUPS[kind], request, {"name": name}, result, f"{name}: {told}.", tuple(facts))


def random_lookup(rng: Random) -> ToolTurn:
    group = rng.choice(tuple(LOOKUPS))
    kinds: list[Kind] = rng.sample(BY_ENTITY[group], rng.randint(1, 3))
    entity = new_entity(rng, group)
    return lookup(rng, entity, [Fact(kind, entity, kind.value(rng)) for kind in kinds])


def random_action(rng: Random) -> ToolTurn:
    """A restart, a new ticket or a message."""
    service = new_entity(rng, "service")
    which = rng.randrange(3)
    if which == 0:
        request = rng.choice(_RESTART).format(e=service)
        return ToolTurn(RESTART, request, {"name": service}, '{"status": "ok"}', f"Restarted {service}.")
    if which == 1:
        title, priority, number = (
            rng.choice(_TITLES).format(s=service),
            rng.choice(("low", "medium", "high")),
            w.ticket(rng),
        )
        arguments, request = {"title": title, "priority": priority}, rng.choice(_OPEN).format(t=title, p=priority)
        return ToolTurn(OPEN_TICKET, request, arguments, json.dumps({"ticket": number}), f"Opened {number}.")
    to, text = new_entity(rng, "person"), rng.choice(_TEXTS).format(s=service)
    request = rng.choice(_SEND).format(e=to, t=text)
    return ToolTurn(SEND, request, {"to": to, "text": text}, '{"status": "sent"}', f"Sent to {to}.")


def declared(rng: Random, needed: Tool | None = None, most: int = 3) -> list[Tool]:
    """Some tools in random order, ``needed`` among them."""
    others = rng.sample([t for t in TOOLS if t is not needed], rng.randint(0 if needed else 1, most - 1))
    chosen = [*others, needed] if needed else others
    rng.shuffle(chosen)
    return chosen
