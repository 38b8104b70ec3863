"""The tables of deltamem-agents 0.1.0."""

from alembic import op

from deltamem_agents.store.migrations.tables import OLD

revision = "0001"
down_revision = None


def upgrade() -> None:
    bind = op.get_bind()
    OLD.create_all(bind)
    bind.execute(OLD.tables["meta"].insert().values(key="schema_version", value="1"))
