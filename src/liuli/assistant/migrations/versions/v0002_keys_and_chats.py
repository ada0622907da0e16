"""Keys of the server, and chats whose messages know what they follow."""

import sqlalchemy as sql
from alembic import op

revision, down_revision = "v0002", "v0001"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "keys",
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("name", sql.String, nullable=False, unique=True),
        sql.Column("digest", sql.String, nullable=False, unique=True),
        sql.Column("requests_per_minute", sql.Integer),
        sql.Column("tokens_per_minute", sql.Integer),
        sql.Column("time", sql.Float, nullable=False),
    )
    op.create_table(
        "chats",
        sql.Column("id", sql.String, primary_key=True),
        sql.Column("owner", sql.String, nullable=False, index=True),
        sql.Column("title", sql.Text, nullable=False),
        sql.Column("created", sql.Float, nullable=False),
        sql.Column("updated", sql.Float, nullable=False),
    )
    op.create_table(
        "messages",
        sql.Column("chat", sql.String, sql.ForeignKey("chats.id"), primary_key=True),
        sql.Column("id", sql.String, primary_key=True),
        sql.Column("parent_id", sql.String),
        sql.Column("place", sql.Integer, nullable=False),
        sql.Column("message", sql.JSON, nullable=False),
        sql.Column("model", sql.String, nullable=False),
        sql.Column("seed", sql.BigInteger),
        sql.Column("sampling", sql.JSON),
        sql.Column("created", sql.Float, nullable=False),
    )
