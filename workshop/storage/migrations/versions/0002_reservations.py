"""Reservations of budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "usage_reservations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("principal", sa.String(255), nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_usage_reservations_principal", "usage_reservations", ["principal"])


def downgrade() -> None:
    op.drop_table("usage_reservations")
