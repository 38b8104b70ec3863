"""Alembic runs this file for every command; :func:`deltamem_agents.store.migrations.run` gives it what it needs."""

from typing import Any

from alembic import context

from deltamem_agents.store.models import Base


def _note(ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
    context.config.attributes["done"].append(step.up_revision_id)


context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, on_version_apply=_note
)
with context.begin_transaction():  # does nothing: the transaction is the caller's
    context.run_migrations()
