"""Users and their sessions; owners of cases.

Cases from before belong to nobody: only callers with the scope ``cases:all`` see them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("cases", sa.Column("owner", sa.String(255), nullable=False, server_default=""))
    op.create_index("cases_of_owner", "cases", ["owner", "created"])
    op.create_table(
        "users",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("role", sa.String(255), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user", sa.String(255), nullable=False),
        sa.Column("refresh_id", sa.Uuid(), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["user"], ["users.name"], ondelete="CASCADE"),
    )
    op.create_index("ix_sessions_user", "sessions", ["user"])
    op.create_index("ix_sessions_expires", "sessions", ["expires"])


def downgrade() -> None:
    op.drop_table("sessions")
    op.drop_table("users")
    op.drop_index("cases_of_owner", "cases")
    op.drop_column("cases", "owner")
