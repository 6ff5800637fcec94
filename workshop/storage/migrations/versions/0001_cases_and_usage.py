"""Cases and usage.

A database from before migrations has these tables already, and keeps them as they are.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "cases",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("measurements", sa.JSON(), nullable=False),
        sa.Column("diagnosis", sa.String(255), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index("ix_cases_created", "cases", ["created"], if_not_exists=True)
    op.create_table(
        "usage",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("endpoint", sa.String(255), nullable=False),
        sa.Column("principal", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("cascaded", sa.Boolean(), nullable=True),
        sa.Column("draft_accepted", sa.Boolean(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index("usage_spent", "usage", ["principal", "at", "cost"], if_not_exists=True)
    op.create_index(
        "usage_totals", "usage", ["model", "cascaded", "draft_accepted", "cost", "latency_ms"], if_not_exists=True
    )


def downgrade() -> None:
    op.drop_table("usage")
    op.drop_table("cases")
