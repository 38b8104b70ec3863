"""Which sub-states a message is written to: what the message itself says, else a router, else its role."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from ..engine import Engine
from ..errors import StateError

Router = Callable[[BaseMessage], str | Sequence[str] | None]
"""Names the sub-state of a message, or several; :data:`NOWHERE` or none: the journal alone keeps it. None: by role."""

NOWHERE = "nowhere"


def sub_states_of(
    message: BaseMessage, plain: Mapping[str, Any], engine: Engine, router: Router | None = None
) -> tuple[str, ...]:
    """The sub-states that a message is written to; none: the journal keeps it, the memory does not.

    ``additional_kwargs["sub_state"]`` of the message comes first, then ``router``, then the engine's default: what
    people say and tools return goes to ``facts``, what the agent says and does to ``task_progress``. A memory that has
    one sub-state alone takes every message, whatever names are given, but those that go nowhere.

    Args:
        plain: the message in the engine's form.

    Raises:
        StateError: a name that is no sub-state of this memory.
    """
    chosen = message.additional_kwargs.get("sub_state")
    if chosen is None and router is not None:
        chosen = router(message)
    if chosen is None:
        return engine.route(plain)
    names = (chosen,) if isinstance(chosen, str) else tuple(dict.fromkeys(chosen))
    if not names or names == (NOWHERE,):
        return ()
    if len(engine.sub_states) == 1:
        return engine.route(plain)
    if unknown := [name for name in names if name not in engine.sub_states]:
        raise StateError(
            f"no sub-state {unknown[0]!r} for a message with role {plain['role']!r}; this memory has "
            f'{sorted(engine.sub_states)}, and "{NOWHERE}", alone, keeps it out of all of them'
        )
    return names
